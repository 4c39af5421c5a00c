-- Runs before authorization. What it removes here can reach neither authorize nor an upstream.
-- Belongs behind `rules_by_mark` in one script.
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
local function misspelt_method(method)
  if known_methods[method] then
    return false
  end
  local upper = method:upper()
  return method ~= upper and known_methods[upper] == true
end

-- A name or an address, with or without a port. Nothing is decoded: what stands here is compared
-- with routes, remembered, and put into redirects and assertions.
local function looks_like_host(authority)
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

local known_hosts, hosts_count, most_hosts = {}, 0, 2000

local function is_host(authority)
  if known_hosts[authority] then
    return true
  elseif #authority > max_authority or not looks_like_host(authority) then
    return false
  end
  if hosts_count >= most_hosts then
    known_hosts, hosts_count = {}, 0
  end
  known_hosts[authority], hosts_count = true, hosts_count + 1
  return true
end

-- Servlet containers drop `;...` from a segment before they resolve dots and merge slashes, Envoy
-- does not: `/a/..;/b` would be decided as a path below /a and served as /b, and so would `/;/b`.
local function hidden_segment(target)
  if not target:find(";", 1, true) and not target:find("%3", 1, true) then
    return false
  end
  local path = target:match("^[^?]*")
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

local keep, look, drop, drop_unless_trusted, drop_if_impersonating = 0, 1, 2, 3, 4

-- What this script and the decision cache look at.
local looked_at = {
  [":method"] = true, [":path"] = true, [":authority"] = true, [":scheme"] = true,
  ["accept"] = true, ["authorization"] = true, ["content-type"] = true, ["cookie"] = true,
  ["referer"] = true, ["traceparent"] = true, ["upgrade"] = true,
  ["x-pomerium-authorization"] = true,
}

-- Servers that follow CGI see letters and digits only (RFC 3875, 4.1.18), so names are compared as
-- such a server would. A header that is ours to set is ours in every spelling.
local function judge(name)
  if looked_at[name] then
    return look
  end
  local normal = name:gsub("[^%w]", "-")
  if normal:sub(1, 11) == "x-pomerium-" then
    return drop
  elseif normal:sub(1, 8) == "x-envoy-" then
    return name == "x-envoy-external-address" and keep or drop
  elseif said_by_proxies[normal] then
    return name == normal and drop_unless_trusted or drop
  elseif normal:sub(1, 12) == "x-forwarded-" then
    return name == normal and keep or drop -- what is left of these Envoy made
  elseif normal == "impersonate-user" or normal == "impersonate-group"
      or normal == "impersonate-uid" or normal:sub(1, 18) == "impersonate-extra-" then
    return drop_if_impersonating
  end
  return keep
end

-- Requests mostly have the same few names.
local judged, judged_count, most_judged, longest_judged = {}, 0, 2000, 64

local function judgement_of(name)
  local known = judged[name]
  if known == nil then
    known = judge(name)
    if #name <= longest_judged then
      if judged_count >= most_judged then
        judged, judged_count = {}, 0
      end
      judged[name], judged_count = known, judged_count + 1
    end
  end
  return known
end

-- On Kubernetes routes only Gatehouse may say on whose behalf a request is made.
local function is_unwanted(name, rules)
  local judgement = judgement_of(name)
  return judgement == drop or (judgement == drop_unless_trusted and not rules.trusts_proxies)
      or (judgement == drop_if_impersonating and rules.impersonates)
end

-- One table for all requests: nothing waits between its being filled and its last use.
local seen = {}

-- The headers that are looked at, and the names of those that must go.
local function sort_headers(headers, rules)
  for name in pairs(seen) do
    seen[name] = nil
  end
  local doomed, repeated = nil, nil
  for name, value in pairs(headers) do
    local judgement = judged[name] or judgement_of(name)
    if judgement == look then
      if seen[name] ~= nil then
        repeated = repeated or {}
        repeated[name] = repeated[name] or {seen[name]}
        table.insert(repeated[name], value)
      end
      seen[name] = value
    elseif judgement ~= keep and is_unwanted(name, rules) then
      doomed = doomed or {}
      doomed[#doomed + 1] = name
    end
  end
  for name, values in pairs(repeated or {}) do
    if name == "cookie" then
      -- Several Cookie lines become one, joined as HTTP/2 joins its crumbs (RFC 9113, 8.2.3), so
      -- that authorize, the filter after it and the upstream all read the same list.
      seen[name] = table.concat(values, "; ")
      headers:replace(name, seen[name])
    else
      seen[name] = table.concat(values, ",")
    end
  end
  return doomed
end

local function strip_headers(handle, headers, doomed)
  if doomed == nil then
    return
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
    seen.assertion = true
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
local function drop_malformed_trace(headers, trace)
  if trace ~= nil and not is_trace(trace) then
    headers:remove("traceparent")
    headers:remove("tracestate")
  end
end

local function describe_client_certificate(handle)
  local info = handle:streamInfo()
  local metadata, ssl = info:dynamicMetadata(), info:downstreamSslConnection()
  local presented = ssl ~= nil and ssl:peerCertificatePresented() == true
  metadata:set("@CLIENT_CERTIFICATE_NAMESPACE@", "presented", presented)
  if presented then
    local chain = ssl:urlEncodedPemEncodedPeerCertificateChain()
    metadata:set("@CLIENT_CERTIFICATE_NAMESPACE@", "chain", chain)
  end
end

local function names_of(list)
  local found = {}
  for _, name in ipairs(list or {}) do
    found[name] = true
  end
  return found
end

-- What of the request the route's decisions depend on; nil when they are never remembered.
local function plan_of(route)
  local declared = route:get("decision")
  if declared == nil then
    return nil
  end
  local headers = declared["headers"] or {}
  return {
    name = #declared["name"] .. ":" .. declared["name"], cookie = route:get("remove_pomerium_cookie"),
    method = declared["method"], path = declared["path"], source = declared["source"],
    forwarded = declared["forwarded"], certificate = declared["certificate"], headers = headers,
    is_particular = declared["method"] or declared["path"] or declared["source"]
        or declared["certificate"] or #headers > 0,
  }
end

local rewrites_any = false -- true once a route was seen that rewrites response headers

local function read_rules(route)
  local rules = {
    trusts_proxies = route:get("trusts_proxies") == true,
    stays_open = route:get("stays_open") == true,
    impersonates = route:get("remove_impersonate_headers") == true,
    asserted = names_of(route:get("asserted_headers")),
    rewrites = route:get("rewrite_response_headers"),
    plan = plan_of(route),
    cookie = route:get("remove_pomerium_cookie") or "",
    credentials = route:get("remove_pomerium_authorization") == true,
    leads_to_application = route:get("@ROUTE_ID@") ~= nil,
  }
  rewrites_any = rewrites_any or rules.rewrites ~= nil
  return rules
end

local rules_of = rules_by_mark(read_rules)

-- Which form an error page of Envoy's own takes: Accept by quality, then by position.
local reply_types = {
  ["text/html"] = "html", ["text/*"] = "html",
  ["text/plain"] = "plain",
  ["application/json"] = "json", ["application/*"] = "json",
}

local function accepted_type(accept)
  local best, best_quality = "html", 0
  for item in accept:lower():gmatch("[^,]+") do
    local kind = reply_types[item:match("^%s*([^;%s]+)") or ""]
    local quality = tonumber(item:match(";%s*q%s*=%s*([%d%.]+)") or "1") or 0
    if kind ~= nil and quality > best_quality then
      best, best_quality = kind, quality
    end
  end
  return best
end

local known_accepts, accepts_count, most_accepts, longest_accept = {}, 0, 500, 512

local function reply_type()
  local content_type, accept = seen["content-type"], seen["accept"]
  if content_type ~= nil and content_type:lower():sub(1, 16) == "application/grpc" then
    return "grpc"
  elseif accept == nil or accept == "@PLAINLY_JSON@" then
    return nil
  end
  local kind = known_accepts[accept]
  if kind == nil then
    kind = accepted_type(accept)
    kind = kind ~= "html" and kind
    if #accept <= longest_accept then
      if accepts_count >= most_accepts then
        known_accepts, accepts_count = {}, 0
      end
      known_accepts[accept], accepts_count = kind, accepts_count + 1
    end
  end
  return kind or nil
end

-- Without a note Envoy can tell: it is HTML unless nothing but JSON is accepted.
local function note_reply_type(handle)
  local kind = reply_type()
  if kind ~= nil then
    local metadata = handle:streamInfo():dynamicMetadata()
    metadata:set("envoy.filters.http.lua", "pomerium_local_reply_type", kind)
  end
end

local function asks_for_stream()
  return (seen["accept"] or ""):lower():find("text/event-stream", 1, true) ~= nil
      or (seen["content-type"] or ""):lower():sub(1, 16) == "application/grpc"
end

-- What says that it will be a stream is decided by authorize and, where streams may stay open,
-- watched as long as it is; of all others there the watcher hears nothing.
local function note_kind(handle, rules)
  seen.stream = seen["upgrade"] ~= nil or seen[":method"] == "CONNECT"
      or (rules.stays_open and asks_for_stream()) or nil
  if rules.stays_open and not seen.stream then
    handle:streamInfo():dynamicMetadata():set("@STREAM_NAMESPACE@", "@BRIEF_FIELD@", true)
  end
end

-- Of these nothing changes when an application hears them twice (RFC 9110, 9.2.1), so they may be
-- sent again when a connection ends without an answer. Ours are not among them: a sign-in's links
-- work once, whatever the method.
local repeatable = {GET = true, HEAD = true, OPTIONS = true}

local function allow_retries(headers, rules)
  if rules.leads_to_application and repeatable[seen[":method"]] and not seen["upgrade"] then
    headers:replace("x-envoy-retry-on", "reset")
  end
end

-- nil and the rules of the route, or why the request is refused.
local function protect(handle)
  local headers = handle:headers()
  local rules = rules_of(handle)
  local doomed = sort_headers(headers, rules)
  note_reply_type(handle)
  if misspelt_method(seen[":method"] or "") then
    return "methods are written in capital letters (RFC 9110, 9.1)"
  end
  if not is_host(seen[":authority"] or "") then
    return "the host is not one name or address, with or without a port"
  end
  if hidden_segment(seen[":path"] or "") then
    return "the path hides an empty or dot segment behind parameters"
  end
  strip_headers(handle, headers, doomed)
  drop_malformed_trace(headers, seen["traceparent"])
  note_kind(handle, rules)
  allow_retries(headers, rules)
  if cache == nil or not cache.recall(handle, headers, seen, rules) then
    describe_client_certificate(handle)
  end
  return nil, rules
end

-- Waits for the trailers and holds nothing up: headers and body go on meanwhile. What this route
-- sets or removes among the headers would come back here in the client's words. Fields that no
-- trailer may be (RFC 9110, 6.5.1) go too, when they can carry a credential of ours.
local function strip_trailers(handle, rules)
  local trailers = handle:trailers()
  if trailers == nil then
    return
  end
  local doomed = {}
  for name, _ in pairs(trailers) do
    local normal = name:gsub("[^%w]", "-")
    if is_unwanted(name, rules) or rules.asserted[normal]
        or normal == "x-pomerium-authorization" or normal == "authorization"
        or normal == "cookie" then
      doomed[#doomed + 1] = name
    end
  end
  for _, name in ipairs(doomed) do
    trailers:remove(name)
  end
end

function envoy_on_request(handle)
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

-- Every value of a repeated header is looked at on its own.
local function rewrite(headers, rule)
  local name, prefix, replacement = rule["header"], rule["prefix"], rule["value"]
  local count = headers:getNumValues(name)
  local values, changed = {}, false
  for index = 0, count - 1 do
    local value = headers:getAtIndex(name, index) or ""
    if value:sub(1, #prefix) == prefix then
      value, changed = replacement .. value:sub(#prefix + 1), true
    end
    values[#values + 1] = value
  end
  if not changed then
    return
  end
  headers:remove(name)
  for _, value in ipairs(values) do
    headers:add(name, value)
  end
end

local function rewrite_all(handle)
  for _, rule in ipairs(rules_of(handle).rewrites or {}) do
    rewrite(handle:headers(), rule)
  end
end

function envoy_on_response(handle)
  if cache ~= nil then
    cache.learn(handle)
  end
  if rewrites_any then
    local rewritten, problem = pcall(rewrite_all, handle)
    if not rewritten then
      handle:logErr("rewrite response headers: " .. tostring(problem))
    end
  end
end
