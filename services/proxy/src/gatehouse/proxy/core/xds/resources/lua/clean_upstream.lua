-- Runs after authorization: nothing passes without a decision, and no credential of ours leaves for
-- an upstream, in whatever form it came.
--
-- Everything here takes time in proportion to its input: a client chooses what these patterns meet.
--
-- Route metadata says what to do: `undecided` (nobody is asked about this route; without it an allow
-- must be there), `remove_pomerium_cookie` (the name of the session cookie),
-- `remove_pomerium_authorization`, `remove_impersonate_headers` (a Kubernetes route),
-- `rewrite_response_headers`.

-- Without blanks at both ends. The pattern `^%s*(.-)%s*$` would be quadratic in inner blanks.
local function trimmed(text)
  local first = text:find("%S")
  if first == nil then
    return ""
  end
  local last = #text
  while text:find("^%s", last) do
    last = last - 1
  end
  return text:sub(first, last)
end

-- Cookie names may begin with a prefix that browsers check, in any letters (RFC 6265bis, 4.1.3).
local function without_prefix(name)
  local lower = name:sub(1, 9):lower()
  if lower == "__secure-" then
    return name:sub(10)
  elseif lower:sub(1, 7) == "__host-" then
    return name:sub(8)
  end
  return name
end

-- The session cookie, authenticate's own, and those of a sign-in under way. Names from the settings
-- are compared as they are, never as patterns.
local function is_named_by_us(name, base)
  if name:sub(1, #base) ~= base then
    return false
  end
  local rest = name:sub(#base + 1)
  return rest == "" or rest == "_authenticate" or rest == "_csrf"
      or rest:sub(1, 7) == "_login_" or rest:sub(1, 6) == "_pkce_"
end

local function is_our_cookie(pair, base)
  local name = trimmed(pair:match("^[^=]*"))
  return is_named_by_us(name, base) or is_named_by_us(without_prefix(name), base)
end

-- What is left of one cookie, and whether something went. Some servers take commas for separators
-- too (RFC 2109, 4.4), others have them in values: only a part that names a cookie of ours goes.
local function clean_cookie(crumb, base)
  local kept, dropped = {}, false
  for part in (crumb .. ","):gmatch("([^,]*),") do
    if is_our_cookie(part, base) then
      dropped = true
    else
      kept[#kept + 1] = part
    end
  end
  return trimmed(dropped and table.concat(kept, ",") or crumb), dropped
end

local function clean_cookies(headers, base)
  local count = headers:getNumValues("cookie")
  if count == 0 then
    return
  end
  local kept, dropped = {}, false
  for index = 0, count - 1 do
    for crumb in (headers:getAtIndex("cookie", index) or ""):gmatch("[^;]+") do
      local rest, changed = clean_cookie(crumb, base)
      dropped = dropped or changed
      if rest ~= "" then
        kept[#kept + 1] = rest
      end
    end
  end
  if not dropped then
    return
  end
  headers:remove("cookie")
  if #kept > 0 then
    headers:add("cookie", table.concat(kept, "; "))
  end
end

local function is_our_authorization(value)
  local lower = value:lower()
  return lower:sub(1, 9) == "pomerium " or lower:match("^bearer%s+pomerium%-") ~= nil
end

-- Envoy joins repeated Authorization lines with commas; each part is looked at.
local function clean_authorization(headers)
  headers:remove("x-pomerium-authorization")
  local count = headers:getNumValues("authorization")
  if count == 0 then
    return
  end
  local kept, dropped = {}, false
  for index = 0, count - 1 do
    for part in ((headers:getAtIndex("authorization", index) or "") .. ","):gmatch("([^,]*),") do
      if is_our_authorization(trimmed(part)) then
        dropped = true
      else
        kept[#kept + 1] = part
      end
    end
  end
  if not dropped then
    return
  end
  headers:remove("authorization")
  local rest = trimmed(table.concat(kept, ","))
  if rest ~= "" then
    headers:add("authorization", rest)
  end
end

local function decoded(text)
  return (text:gsub("%+", " "):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

-- Of `:path` or `referer`: a page that was opened with a credential names it in its requests.
local function clean_query(headers, name)
  local url = headers:get(name) or ""
  local start = url:find("?", 1, true)
  if start == nil then
    return
  end
  local kept, dropped = {}, false
  for pair in (url:sub(start + 1) .. "&"):gmatch("([^&]*)&") do
    if decoded(pair:match("^([^=]*)")) == "pomerium_session" then
      dropped = true
    else
      kept[#kept + 1] = pair
    end
  end
  if not dropped then
    return
  end
  local query = table.concat(kept, "&")
  headers:replace(name, url:sub(1, start - 1) .. (query == "" and "" or "?" .. query))
end

-- Other separators, or two referers in one, hide the parameter: then the whole query goes.
local function clean_referer(headers)
  clean_query(headers, "referer")
  local url = headers:get("referer") or ""
  local start = url:find("?", 1, true)
  if start ~= nil and decoded(url:sub(start)):find("pomerium_session=", 1, true) then
    headers:replace("referer", url:sub(1, start - 1))
  end
end

-- One line for each group, since a name may hold a comma. Authorize says which; what the client
-- sent is gone since the request guard.
local function impersonate_groups(handle)
  local decision = handle:streamInfo():dynamicMetadata():get("@DECISION_NAMESPACE@")
  for _, group in ipairs((decision or {})["impersonate-groups"] or {}) do
    handle:headers():add("impersonate-group", group)
  end
end

local function clean(handle)
  local route = handle:metadata()
  local headers = handle:headers()
  local cookie = route:get("remove_pomerium_cookie")
  if cookie ~= nil and cookie ~= "" then
    clean_cookies(headers, cookie)
  end
  if route:get("remove_pomerium_authorization") then
    clean_authorization(headers)
    clean_query(headers, ":path")
    clean_referer(headers)
  end
  if route:get("remove_impersonate_headers") then
    impersonate_groups(handle)
  end
end

-- Envoy takes an answer that says nothing for an allow. Where no route matches, nobody is asked, and
-- Envoy says that there is nothing.
local function is_allowed(handle)
  local info = handle:streamInfo()
  if info:routeName() == "" or handle:metadata():get("undecided") == true then
    return true
  end
  local decision = info:dynamicMetadata():get("@DECISION_NAMESPACE@") or {}
  return decision["@DECISION_FIELD@"] == "@DECISION_ALLOW@"
end

function envoy_on_request(handle)
  local decided, allowed = pcall(is_allowed, handle)
  if not decided or not allowed then
    handle:logErr("clean upstream: " .. (decided and "no decision" or tostring(allowed)))
    handle:respond({[":status"] = "503", ["content-type"] = "text/plain"}, "no decision\n")
    return
  end
  local cleaned, problem = pcall(clean, handle)
  if not cleaned then
    handle:logErr("clean upstream: " .. tostring(problem))
    handle:respond({[":status"] = "500", ["content-type"] = "text/plain"}, "internal error\n")
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

function envoy_on_response(handle)
  local rules = handle:metadata():get("rewrite_response_headers")
  if rules == nil then
    return
  end
  for _, rule in ipairs(rules) do
    local rewritten, problem = pcall(rewrite, handle:headers(), rule)
    if not rewritten then
      handle:logErr("rewrite response headers: " .. tostring(problem))
    end
  end
end
