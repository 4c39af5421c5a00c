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
local max_authority = 261 -- a name of 255 bytes (RFC 1035, 2.3.4), a colon, five digits
local max_label = 63

-- A known method in other letters would pass a policy that names it and mean the same upstream.
local function misspelt_method(headers)
  local method = headers:get(":method") or ""
  local upper = method:upper()
  return method ~= upper and known_methods[upper] == true
end

-- A name or an address, with or without a port. Nothing is decoded: what stands here is compared
-- with routes, remembered, and put into redirects and assertions.
local function is_host(authority)
  if #authority > max_authority then
    return false
  end
  local address, rest = authority:match("^%[([%x:.]+)%](.*)$")
  if address ~= nil then
    if not address:find(":", 1, true) then
      return false
    end
  else
    local name
    name, rest = authority:match("^([%w._-]+)(.*)$")
    if name == nil or name:sub(1, 1) == "." or name:find("..", 1, true) then
      return false
    end
    for label in name:gmatch("[^.]+") do
      if #label > max_label then
        return false
      end
    end
  end
  return rest == "" or rest:find("^:%d%d?%d?%d?%d?$") ~= nil
end

-- Servlet containers drop `;...` from a segment before they resolve dots and merge slashes, Envoy
-- does not: `/a/..;/b` would be decided as a path below /a and served as /b, and so would `/;/b`.
local function hidden_segment(headers)
  local path = (headers:get(":path") or ""):match("^[^?]*")
  if not path:find(";", 1, true) and not path:find("%3", 1, true) then
    return false
  end
  local plain = path:gsub("%%2[eE]", "."):gsub("%%3[bB]", ";")
  return plain:find("/%.?%.?;") ~= nil
end

-- What a proxy in front of us may say of the request, and nobody else.
local said_by_proxies = {
  ["forwarded"] = true, ["x-forwarded-host"] = true, ["x-forwarded-port"] = true,
  ["x-forwarded-prefix"] = true, ["x-forwarded-scheme"] = true, ["x-forwarded-server"] = true,
  ["x-forwarded-uri"] = true, ["x-original-url"] = true, ["x-real-ip"] = true,
  ["x-rewrite-url"] = true,
}

-- Servers that follow CGI see letters and digits only (RFC 3875, 4.1.18), so names are compared as
-- such a server would. A header that is ours to set is ours in every spelling.
local function is_unwanted(name, rules)
  local normal = name:gsub("[^%w]", "-")
  if normal:sub(1, 11) == "x-pomerium-" then
    return name ~= "x-pomerium-authorization"
  elseif normal:sub(1, 8) == "x-envoy-" then
    return name ~= "x-envoy-external-address"
  elseif said_by_proxies[normal] then
    return name ~= normal or not rules.trusts_proxies
  elseif normal:sub(1, 12) == "x-forwarded-" then
    return name ~= normal -- what is left of these Envoy made
  end
  -- On Kubernetes routes only Gatehouse may say on whose behalf a request is made.
  return rules.impersonates and (normal == "impersonate-user" or normal == "impersonate-group"
      or normal == "impersonate-uid" or normal:sub(1, 18) == "impersonate-extra-")
end

local function strip_headers(handle, headers, rules)
  local doomed, cookies = {}, {}
  for name, value in pairs(headers) do
    if is_unwanted(name, rules) then
      doomed[#doomed + 1] = name
    elseif name == "cookie" then
      cookies[#cookies + 1] = value
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
  -- Several Cookie lines become one, joined as HTTP/2 joins its crumbs (RFC 9113, 8.2.3), so that
  -- authorize, the filter after it and the upstream all read the same list.
  if #cookies > 1 then
    headers:replace("cookie", table.concat(cookies, "; "))
  end
end

local hex = "[%da-f]"
local trace_shape = "^(" .. hex:rep(2) .. ")%-(" .. hex:rep(32) .. ")%-(" .. hex:rep(16) .. ")%-"
    .. hex:rep(2) .. "(.*)$"

-- W3C Trace Context, 3.2: a version after 00 may append fields.
local function is_trace(text)
  local version, trace, parent, more = text:match(trace_shape)
  return version ~= nil and version ~= "ff" and trace:find("[^0]") ~= nil
      and parent:find("[^0]") ~= nil
      and (more == "" or (version ~= "00" and more:find("^%-[%w-]*$") ~= nil))
end

-- A query parameter has been decoded into this header, line breaks included. What is no trace goes,
-- and the state that belongs to it.
local function drop_malformed_trace(headers)
  local trace = headers:get("traceparent")
  if trace ~= nil and not is_trace(trace) then
    headers:remove("traceparent")
    headers:remove("tracestate")
  end
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

local function rules_of(handle)
  local route = handle:metadata()
  return {
    trusts_proxies = route:get("trusts_proxies") == true,
    impersonates = route:get("remove_impersonate_headers") == true,
  }
end

-- nil and the rules of the route, or why the request is refused.
local function protect(handle)
  local headers = handle:headers()
  if misspelt_method(headers) then
    return "methods are written in capital letters (RFC 9110, 9.1)"
  end
  if not is_host(headers:get(":authority") or "") then
    return "the host is not one name or address, with or without a port"
  end
  if hidden_segment(headers) then
    return "the path hides an empty or dot segment behind parameters"
  end
  local rules = rules_of(handle)
  strip_headers(handle, headers, rules)
  drop_malformed_trace(headers)
  describe_client_certificate(handle)
  return nil, rules
end

-- Waits for the trailers and holds nothing up: headers and body go on meanwhile. Fields that no
-- trailer may be (RFC 9110, 6.5.1) go too, when they can carry a credential of ours.
local function strip_trailers(handle, rules)
  local trailers = handle:trailers()
  if trailers == nil then
    return
  end
  local doomed = {}
  for name, _ in pairs(trailers) do
    local normal = name:gsub("[^%w]", "-")
    if is_unwanted(name, rules) or normal == "x-pomerium-authorization"
        or normal == "authorization" or normal == "cookie" then
      doomed[#doomed + 1] = name
    end
  end
  for _, name in ipairs(doomed) do
    trailers:remove(name)
  end
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
  local protected, refusal, rules = pcall(protect, handle)
  if not protected then
    handle:logErr("request guard: " .. tostring(refusal))
    handle:respond({[":status"] = "500", ["content-type"] = "text/plain"}, "internal error\n")
  elseif refusal ~= nil then
    handle:respond(
      {[":status"] = "400", ["content-type"] = "text/plain; charset=UTF-8"},
      "Bad Request: " .. refusal .. ".\n"
    )
  else
    local stripped, failure = pcall(strip_trailers, handle, rules)
    if not stripped then
      handle:logErr("request guard, trailers: " .. tostring(failure))
    end
  end
end
