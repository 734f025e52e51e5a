-- A browser's requests for wrk. Arguments: cookie mode (warm, cold, none), first number of the cold
-- cookies, names of the members. Prints one line that begins with RESULT.

local HEADERS = {
  {"User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
  {"Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"},
  {"Accept-Language", "en-GB,en;q=0.7,de;q=0.3"},
  {"Accept-Encoding", "gzip, deflate, br, zstd"},
  {"Referer", "https://mybinder.org/"},
  {"DNT", "1"},
  {"Connection", "keep-alive"},
  {"Upgrade-Insecure-Requests", "1"},
  {"Sec-Fetch-Dest", "document"},
  {"Sec-Fetch-Mode", "navigate"},
  {"Sec-Fetch-Site", "same-origin"},
  {"Sec-Fetch-User", "?1"},
  {"Priority", "u=0, i"},
}

local mode, serial, pinned, turn = "none", 0, {}, 0

function init(args)
  mode, serial = args[1], tonumber(args[2])
  local lines = {"GET " .. wrk.path .. " HTTP/1.1", "Host: " .. wrk.host .. ":" .. wrk.port}
  for _, header in ipairs(HEADERS) do
    lines[#lines + 1] = header[1] .. ": " .. header[2]
  end
  local head = table.concat(lines, "\r\n")
  if mode == "none" then
    pinned[1] = head .. "\r\n\r\n"
    return
  end
  for at = 3, #args do
    local cookie = head .. "\r\nCookie: fedproxy_member=" .. args[at] .. "; _ga=GA1.1."
    pinned[#pinned + 1] = mode == "cold" and cookie or cookie .. "1234567890123\r\n\r\n"
  end
end

function request()
  turn = turn % #pinned + 1
  if mode ~= "cold" then
    return pinned[turn]
  end
  serial = serial + 1
  return pinned[turn] .. string.format("%013.0f", serial) .. "\r\n\r\n"
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format("RESULT %d %d %d %.0f %.0f %d %d",
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
