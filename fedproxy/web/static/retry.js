
// Asks for the page again after a while, each time later, at most ten times in a row, and only while somebody looks.
(function () {
  "use strict";
  var most = 10, longest = 300, forgotten = 900;
  var after = Number(document.currentScript.getAttribute("data-after")) || 30;
  var key = "retry:" + location.pathname, tries = 0, store = null;
  try {
    store = window.sessionStorage;
    var before = JSON.parse(store.getItem(key) || "null");
    if (before && Date.now() - before.at < forgotten * 1000) tries = before.tries;
  } catch (error) {
    // Nothing can be kept, as in a sandbox: every try counts as a late one.
    store = null;
  }
  if (tries >= most) return;
  // Spread out, or everybody comes back at once.
  var wait = (store ? Math.min(after * Math.pow(2, tries), longest) : longest) * (1 + Math.random() / 4);
  var due = Date.now() + wait * 1000;
  document.addEventListener("DOMContentLoaded", function () {
    var notes = document.querySelectorAll("[data-retry]"), seconds = document.querySelectorAll("[data-seconds]");
    notes.forEach(function (each) { each.hidden = false; });
    function turn() {
      var left = Math.max(0, Math.ceil((due - Date.now()) / 1000));
      seconds.forEach(function (each) { each.textContent = String(left); });
      if (left > 0 || document.hidden) return;
      clearInterval(timer);
      if (store) store.setItem(key, JSON.stringify({ tries: tries + 1, at: Date.now() }));
      location.reload();
    }
    var timer = setInterval(turn, 1000);
    turn();
  });
})();
