"""The pages, scripts and images of a toy member, in the sizes that a BinderHub serves."""

from __future__ import annotations

import functools
import hashlib
import html
import json
from dataclasses import dataclass

_BUNDLE_BYTES = 1_900_000
_STYLES_BYTES = 407_000
_PAGE_BYTES = 4_500


@dataclass(frozen=True)
class StaticFile:
    """A body with its type and its entity tag (unquoted, RFC 9110 section 8.8.3)."""

    body: bytes
    content_type: str
    etag: str


def make_asset(body: bytes, content_type: str) -> StaticFile:
    """The same body always has the same tag, on every member."""
    return StaticFile(body, content_type, hashlib.sha256(body).hexdigest()[:32])


def ui_page(member: str) -> str:
    """The page to start a launch from; every other path shows it."""
    return _page(
        member,
        f"{member}: a toy BinderHub",
        f"""<p>Turn a repository into a collection of notebooks. This page came from the member
<strong id="member">{html.escape(member)}</strong>, and nothing here is real but the traffic.</p>
<ul class="launches">
<li><a href="/v2/gh/binder-examples/requirements/HEAD">requirements</a> a full build, then cached</li>
<li><a href="/v2/gh/binder-examples/cached/HEAD">cached</a> an image that is there already</li>
<li><a href="/v2/gh/binder-examples/missing/HEAD">missing</a> fails on every member</li>
</ul>
<p>Reload: the same member answers, because a cookie keeps you there. Another one answers, in another colour,
if this member fails or if you move. Behind the edge, <a href="/federation">/federation</a> is the page to
move.</p>""",
    )


def launch_page(member: str) -> str:
    """The page of one launch: its script opens the event stream that belongs to the address."""
    return _page(
        member,
        f"{member}: starting your repository",
        """<p><span id="phase" class="phase" role="status">connecting</span> <code id="spec"></code></p>
<noscript><p>This page follows a launch by script.</p></noscript>
<p><a id="session" class="button" hidden>Open your session</a></p>
<pre id="log" class="log" tabindex="0" role="region" aria-label="Log"></pre>
<p><a href="/">Launch something else</a></p>
<script src="/static/launch.js" defer></script>""",
    )


def session_page(member: str, user: str) -> str:
    """Where a launch ends: the notebook server of one user."""
    return _page(
        member,
        f"{member}: your session",
        f"""<p>The notebook server of <strong>{html.escape(user)}</strong> would be here.</p>
<p><a href="/">Launch something else</a></p>""",
    )


def _page(member: str, title: str, body: str) -> str:
    # A colour of its own, so that visitors see where they are, and that they were moved. These two bytes tell
    # the first members of the demo well apart.
    hue = int.from_bytes(hashlib.sha256(member.encode()).digest()[5:7]) % 360
    head = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/dist/styles.css">
<script src="/static/dist/bundle.js" defer></script>
</head>
<body data-member="{html.escape(member)}" style="--hue: {hue}">
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
"""
    foot = "</body>\n</html>\n"
    room = _PAGE_BYTES - len(head.encode()) - len(foot)
    return head + f"<!-- {'a toy page as long as a real one; ' * 200}"[: max(room - 5, 5)] + " -->\n" + foot


LAUNCH_SCRIPT = """\
"use strict";

const phase = document.getElementById("phase");
const log = document.getElementById("log");
const session = document.getElementById("session");
const spec = location.pathname.replace(/^\\/v2\\//, "");
const source = new EventSource("/build/" + spec);

document.getElementById("spec").textContent = spec;

source.onmessage = (message) => {
  const event = JSON.parse(message.data);
  if (event.phase) {
    phase.textContent = event.phase;
    phase.dataset.phase = event.phase;
  }
  if (event.message) {
    log.append(event.message);
    log.scrollTop = log.scrollHeight;
  }
  if (event.phase === "ready") {
    session.href = event.url + "?token=" + encodeURIComponent(event.token);
    session.hidden = false;
  }
  if (event.phase === "ready" || event.phase === "failed") {
    source.close();
  }
};

source.onerror = () => {
  phase.textContent = source.readyState === EventSource.CLOSED ? "the stream was refused" : "reconnecting";
};
"""

_STYLES = """\
:root {
  color-scheme: light dark;
  --ground: #fff; --text: #222; --quiet: #595e66; --line: #d5d8dc; --accent: #0b5c8a; --on-accent: #fff;
  --ready: #cfeed3; --failed: #fadcd3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #17191d; --text: #e6e7ea; --quiet: #a3a9b3; --line: #3b4049; --accent: #7fc4ee;
    --on-accent: #10222e; --ready: #1d4a2a; --failed: #5e2b1c;
  }
}
@supports (color: oklch(50% 0.1 0)) {
  body { --accent: oklch(46% 0.11 var(--hue)); }
  @media (prefers-color-scheme: dark) { body { --accent: oklch(80% 0.1 var(--hue)); } }
}
* { box-sizing: border-box; }
body {
  background: var(--ground); border-top: .5rem solid var(--accent); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; margin: 0; overflow-wrap: anywhere;
}
main { margin: 0 auto; max-width: 48rem; padding: 1.5rem 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
a { color: var(--accent); }
a:focus-visible, .log:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.launches { list-style: none; margin: 1.5rem 0; padding: 0; }
.launches li {
  border-top: 1px solid var(--line); color: var(--quiet); display: flex; gap: .75rem; padding: .5rem 0;
}
.launches li:last-child { border-bottom: 1px solid var(--line); }
.launches a { flex: none; font-weight: 600; width: 8rem; }
.button { background: var(--accent); border-radius: .4rem; color: var(--on-accent); padding: .55rem 1.1rem; }
.button:not([hidden]) { display: inline-block; }
.phase { background: var(--line); border-radius: 1rem; display: inline-block; padding: .25rem .75rem; }
.phase[data-phase=ready] { background: var(--ready); }
.phase[data-phase=failed] { background: var(--failed); }
.log {
  background: #1f2228; border: 1px solid var(--line); border-radius: .4rem; color: #e6e7ea;
  font-size: .875rem; height: min(24rem, 55vh); overflow: auto; padding: .75rem 1rem; white-space: pre-wrap;
}
"""


@functools.cache
def static_assets() -> dict[str, StaticFile]:
    """Path under `/static/` -> asset; generated once, the same bytes in every process."""
    bundle = _grow('"use strict";\nconst modules = {};\n', 'modules["{}"] = () => "{}";\n', _BUNDLE_BYTES)
    styles = _grow(_STYLES, ".unused-{} {{ --digest: '{}'; }}\n", _STYLES_BYTES)
    return {
        "dist/bundle.js": make_asset(bundle, "text/javascript"),
        "dist/styles.css": make_asset(styles, "text/css"),
        "launch.js": make_asset(LAUNCH_SCRIPT.encode(), "text/javascript"),
    }


def _grow(start: str, line: str, size: int) -> bytes:
    """`start` and then as many numbered lines as it takes to reach `size` bytes."""
    parts, length = [start], len(start)
    while length < size:
        number = len(parts)
        parts.append(line.format(number, hashlib.sha256(str(number).encode()).hexdigest()))
        length += len(parts[-1])
    return "".join(parts).encode()


def badge(label: str = "launch", message: str = "toy binder") -> StaticFile:
    """The image that links a README to a launch."""
    text = html.escape(f"{label} {message}")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="120" height="20" role="img">'
        f'<title>{text}</title><rect width="120" height="20" rx="3" fill="#579aca"/>'
        f'<text x="60" y="14" fill="#fff" font-family="sans-serif" font-size="11" text-anchor="middle">'
        f"{text}</text>"
        "</svg>\n"
    )
    return make_asset(svg.encode(), "image/svg+xml")


_PROVIDERS = {
    "gh": ("GitHub", "GitHub repository name or URL", "HEAD"),
    "gist": ("Gist", "Gist ID (username/gistId) or URL", "HEAD"),
    "git": ("Git", "Arbitrary git repository URL (http://git.example.com/repo)", "HEAD"),
    "gl": ("GitLab", "GitLab.com repository or URL", "HEAD"),
    "zenodo": ("Zenodo", "Zenodo DOI (10.5281/zenodo.3242074)", ""),
    "figshare": ("FigShare", "FigShare DOI (10.6084/m9.figshare.9782777.v1)", ""),
    "hydroshare": ("Hydroshare", "Hydroshare resource id or URL", ""),
    "dataverse": ("Dataverse", "Dataverse DOI (10.7910/DVN/TJCLKP)", ""),
}

PROVIDERS = frozenset(_PROVIDERS)


def repo_providers() -> bytes:
    """The JSON of `/api/repoproviders`: what the launch form can offer."""
    described = [
        {
            "id": key,
            "displayName": name,
            "repo": {"label": label, "placeholder": f"example: {label.lower()}"},
            "ref": {"enabled": bool(ref), "default": ref, "label": "Git ref (branch, tag, or commit)"},
            "detect": {"regex": f"^(https?://{key}\\.example\\.org/)?(?<repo>.*)"},
        }
        for key, (name, label, ref) in _PROVIDERS.items()
    ]
    return json.dumps(described).encode()
