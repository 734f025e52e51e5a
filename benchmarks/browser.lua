-- A browser's requests for wrk. Arguments: mode, first number of what never comes twice, cookies of the members.
-- Modes: warm (the same few heads), cold (of three browsers, with a query, a cookie and a referer that were never
-- seen before), none (new visitors of repositories by Zipf's law), mixed (a page and what it brings), close (a
-- connection each), post (64 KiB to /upload).
-- Prints one line that begins with RESULT.

local HEADERS = {
  {"User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
  {"Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"},
  {"Accept-Language", "en-GB,en;q=0.7,de;q=0.3"},
  {"Accept-Encoding", "gzip, deflate, br, zstd"},
  {"Referer", "https://mybinder.org/"},
  {"DNT", "1"},
  {"Upgrade-Insecure-Requests", "1"},
  {"Sec-Fetch-Dest", "document"},
  {"Sec-Fetch-Mode", "navigate"},
  {"Sec-Fetch-Site", "same-origin"},
  {"Sec-Fetch-User", "?1"},
  {"Priority", "u=0, i"},
}
local CHROME = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36"
-- Each browser's fields in its own order. %s is the host, and each %d a number that was never used before.
local BROWSERS = {
  {
    "Host: %s",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Referer: https://mybinder.org/user/org-repo-x/lab?%d",
    "Connection: keep-alive",
    "Cookie: %c; _ga=GA1.1.%d",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: same-origin",
    "Priority: u=0, i",
  },
  {
    "Host: %s",
    "Connection: keep-alive",
    'sec-ch-ua: "Chromium";v="138", "Not.A/Brand";v="8"',
    "sec-ch-ua-mobile: ?0",
    'sec-ch-ua-platform: "Linux"',
    "Upgrade-Insecure-Requests: 1",
    CHROME,
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
    "Sec-Fetch-Site: same-origin",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-User: ?1",
    "Sec-Fetch-Dest: document",
    "Referer: https://mybinder.org/user/org-repo-x/lab?%d",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-GB,en;q=0.9",
    "Cookie: %c; _ga=GA1.1.%d",
  },
  {
    "Host: %s",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Sec-Fetch-Site: same-origin",
    "Cookie: %c; _ga=GA1.1.%d",
    "Sec-Fetch-Dest: document",
    "Accept-Language: en-GB,en;q=0.9",
    "Sec-Fetch-Mode: navigate",
    "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.5 Safari/605.1.15",
    "Referer: https://mybinder.org/user/org-repo-x/lab?%d",
    "Accept-Encoding: gzip, deflate, br",
    "Priority: u=0, i",
    "Connection: keep-alive",
  },
}
local REPOSITORIES = 1000
local FIRST_VISIT = {
  "/static/dist/styles.css", "/static/dist/bundle.js", "/static/logo.svg", "/static/fonts/icons.woff2",
}

local mode, serial, cookies, fields = "warm", 0, {}, ""
local ready, turn, queue = {}, 0, {}

local function head(path, cookie)
  local method = mode == "post" and "POST " or "GET "
  return method .. path .. fields .. (cookie and "\r\nCookie: fedproxy_member=" .. cookie or "")
end

-- Many picks, each repository as often as Zipf's law says, in an order without pattern.
local function zipf(count)
  local sum, limits, picks = 0, {}, {}
  for rank = 1, REPOSITORIES do
    sum = sum + 1 / rank
    limits[rank] = sum
  end
  math.randomseed(20)
  for at = 1, count do
    local drawn, low, high = math.random() * sum, 1, REPOSITORIES
    while low < high do
      local middle = math.floor((low + high) / 2)
      if limits[middle] < drawn then low = middle + 1 else high = middle end
    end
    picks[at] = low
  end
  return picks
end

-- One visitor in four has nothing in the browser's cache.
local function visit()
  serial = serial + 1
  local cookie = string.format("%s; _ga=GA1.1.%013.0f", cookies[serial % #cookies + 1], serial)
  local repository = ready[serial % #ready + 1]
  queue[1] = head("/api/repoproviders", cookie) .. "\r\n\r\n"
  if serial % 4 == 0 then
    for _, path in ipairs(FIRST_VISIT) do
      queue[#queue + 1] = head(path, cookie) .. "\r\n\r\n"
    end
  end
  queue[#queue + 1] = head("/v2/gh/org/repo-" .. repository .. "/HEAD", cookie) .. "\r\n\r\n"
end

local REFILLS = {mixed = visit}

function init(args)
  mode, serial = args[1], tonumber(args[2])
  for at = 3, #args do
    cookies[#cookies + 1] = args[at]
  end
  local lines = {" HTTP/1.1", "Host: " .. wrk.host .. ":" .. wrk.port}
  for _, header in ipairs(HEADERS) do
    lines[#lines + 1] = header[1] .. ": " .. header[2]
  end
  lines[#lines + 1] = "Connection: " .. (mode == "close" and "close" or "keep-alive")
  local body = ""
  if mode == "post" then
    body = string.rep("x", 65536)
    lines[#lines + 1] = "Content-Type: application/octet-stream\r\nContent-Length: " .. #body
  end
  fields = table.concat(lines, "\r\n")
  if mode == "none" then
    for _, repository in ipairs(zipf(20000)) do
      ready[#ready + 1] = head("/v2/gh/small/repo-" .. repository .. "/HEAD") .. "\r\n\r\n"
    end
  elseif mode == "mixed" then
    ready = zipf(20000)
  elseif mode == "cold" then
    for _, cookie in ipairs(cookies) do
      for _, browser in ipairs(BROWSERS) do
        local lines = table.concat(browser, "\r\n"):gsub("%%s", wrk.host .. ":" .. wrk.port)
        lines = lines:gsub("%%c", "fedproxy_member=" .. cookie):gsub("%%d", "%%013.0f")
        ready[#ready + 1] = "GET " .. wrk.path .. "?_=%013.0f HTTP/1.1\r\n" .. lines .. "\r\n\r\n"
      end
    end
  else
    for _, cookie in ipairs(cookies) do
      ready[#ready + 1] = head(wrk.path, cookie .. "; _ga=GA1.1.1234567890123") .. "\r\n\r\n" .. body
    end
  end
end

function request()
  local refill = REFILLS[mode]
  if refill then
    if #queue == 0 then refill() end
    return table.remove(queue)
  end
  turn = turn % #ready + 1
  if mode ~= "cold" then
    return ready[turn]
  end
  serial = serial + 1
  return string.format(ready[turn], serial, serial, serial)
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format("RESULT %d %d %.0f %.0f %.0f %d %d",
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
