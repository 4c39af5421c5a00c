-- Runs before authorization. What it removes here can reach neither authorize nor an upstream.
--
-- A script that fails lets the request pass, so everything that protects runs inside pcall, and a
-- failure there is answered with 500.

local known_methods = {
  ACL = true, BIND = true, CHECKIN = true, CHECKOUT = true, CONNECT = true, COPY = true,
  DELETE = true, GET = true, HEAD = true, LABEL = true, LINK = true, LOCK = true, MERGE = true,
  MKACTIVITY = true, MKCALENDAR = true, MKCOL = true, MOVE = true, OPTIONS = true, PATCH = true,
  POST = true, PRI = true, PROPFIND = true, PROPPATCH = true, PUT = true, REBIND = true,
  REPORT = true, SEARCH = true, TRACE = true, UNBIND = true, UNCHECKOUT = true, UNLINK = true,
  UNLOCK = true, UPDATE = true,
}

local max_assertion = 16384

-- A known method in other letters would pass a policy that names it and mean the same upstream.
local function misspelt_method(headers)
  local method = headers:get(":method") or ""
  local upper = method:upper()
  return method ~= upper and known_methods[upper] == true
end

-- Servlet containers drop `;...` from a segment before they resolve dots, Envoy does not: `/a/..;/b`
-- would be decided as a path below /a and served as /b.
local function hidden_dots(headers)
  local path = (headers:get(":path") or ""):match("^[^?]*")
  if not path:find(";", 1, true) and not path:find("%3", 1, true) then
    return false
  end
  local plain = path:gsub("%%2[eE]", "."):gsub("%%3[bB]", ";")
  return (plain .. "/"):find("/%.%.?;[^/]*/") ~= nil
end

-- Servers that follow CGI read `-` and `_` alike, so both spellings count.
local function belongs_to_us(name)
  return name:sub(1, 11):gsub("_", "-") == "x-pomerium-" and name ~= "x-pomerium-authorization"
end

local function strip_our_headers(handle, headers)
  local doomed = {}
  for name, _ in pairs(headers) do
    if belongs_to_us(name) then
      doomed[#doomed + 1] = name
    end
  end
  local assertion = headers:get("x-pomerium-jwt-assertion-for")
  if assertion == nil or assertion == "" then
    assertion = headers:get("x-pomerium-jwt-assertion")
  end
  for _, name in ipairs(doomed) do
    headers:remove(name)
  end
  if assertion ~= nil and assertion ~= "" and #assertion <= max_assertion then
    local metadata = handle:streamInfo():dynamicMetadata()
    metadata:set("@CLIENT_ASSERTION_NAMESPACE@", "assertion", assertion)
  end
end

-- On Kubernetes routes only Gatehouse may say on whose behalf a request is made.
local function strip_impersonation(handle, headers)
  if not handle:metadata():get("remove_impersonate_headers") then
    return
  end
  local doomed = {}
  for name, _ in pairs(headers) do
    local normal = name:gsub("_", "-")
    if normal == "impersonate-user" or normal == "impersonate-group"
        or normal == "impersonate-uid" or normal:sub(1, 18) == "impersonate-extra-" then
      doomed[#doomed + 1] = name
    end
  end
  for _, name in ipairs(doomed) do
    headers:remove(name)
  end
end

-- Several Cookie lines become one, joined as HTTP/2 joins its crumbs (RFC 9113, 8.2.3), so that
-- authorize, the filter after it and the upstream all read the same list.
local function join_cookies(headers)
  local count = headers:getNumValues("cookie")
  if count < 2 then
    return
  end
  local lines = {}
  for index = 0, count - 1 do
    lines[#lines + 1] = headers:getAtIndex("cookie", index)
  end
  headers:replace("cookie", table.concat(lines, "; "))
end

local function describe_client_certificate(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local ssl = handle:streamInfo():downstreamSslConnection()
  local presented = ssl ~= nil and ssl:peerCertificatePresented() == true
  metadata:set("@CLIENT_CERTIFICATE_NAMESPACE@", "presented", presented)
  if presented then
    local chain = ssl:urlEncodedPemEncodedPeerCertificateChain()
    metadata:set("@CLIENT_CERTIFICATE_NAMESPACE@", "chain", chain)
  end
end

-- nil, or why the request is refused.
local function protect(handle)
  local headers = handle:headers()
  if misspelt_method(headers) then
    return "methods are written in capital letters (RFC 9110, 9.1)"
  end
  -- Envoy joins repeated Host lines with a comma, which a wildcard host would match.
  if (headers:get(":authority") or ""):find(",", 1, true) then
    return "there is more than one host"
  end
  if hidden_dots(headers) then
    return "the path hides a dot segment"
  end
  strip_our_headers(handle, headers)
  strip_impersonation(handle, headers)
  join_cookies(headers)
  describe_client_certificate(handle)
  return nil
end

-- Which form an error page of Envoy's own takes: Accept by quality, then by position.
local reply_types = {
  ["text/html"] = "html", ["text/*"] = "html",
  ["text/plain"] = "plain",
  ["application/json"] = "json", ["application/*"] = "json",
}

local function reply_type(headers)
  local content_type = headers:get("content-type") or ""
  if content_type:lower():sub(1, 16) == "application/grpc" then
    return "grpc"
  end
  local best, best_quality = "html", 0
  for item in (headers:get("accept") or ""):lower():gmatch("[^,]+") do
    local kind = reply_types[item:match("^%s*([^;%s]+)") or ""]
    local quality = tonumber(item:match(";%s*q%s*=%s*([%d%.]+)") or "1") or 0
    if kind ~= nil and quality > best_quality then
      best, best_quality = kind, quality
    end
  end
  return best
end

local function note_reply_type(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set("envoy.filters.http.lua", "pomerium_local_reply_type", reply_type(handle:headers()))
end

function envoy_on_request(handle)
  local described, problem = pcall(note_reply_type, handle)
  if not described then
    handle:logWarn("reply type: " .. tostring(problem))
  end
  local protected, refusal = pcall(protect, handle)
  if not protected then
    handle:logErr("request guard: " .. tostring(refusal))
    handle:respond({[":status"] = "500", ["content-type"] = "text/plain"}, "internal error\n")
  elseif refusal ~= nil then
    handle:respond(
      {[":status"] = "400", ["content-type"] = "text/plain; charset=UTF-8"},
      "Bad Request: " .. refusal .. ".\n"
    )
  end
end
