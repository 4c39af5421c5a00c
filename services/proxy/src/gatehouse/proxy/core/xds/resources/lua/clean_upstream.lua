-- Runs after authorization: no credential of ours leaves for an upstream, in whatever form it came.
--
-- Route metadata says what to do: `remove_pomerium_cookie` (the name of the session cookie),
-- `remove_pomerium_authorization`, `remove_impersonate_headers` (a Kubernetes route),
-- `rewrite_response_headers`.

-- The session cookie, authenticate's own, and those of a sign-in under way. Names from the settings
-- are compared as they are, never as patterns.
local function is_our_cookie(name, base)
  if name:sub(1, #base) ~= base then
    return false
  end
  local rest = name:sub(#base + 1)
  return rest == "" or rest == "_authenticate" or rest == "_csrf"
      or rest:sub(1, 7) == "_login_" or rest:sub(1, 6) == "_pkce_"
end

local function clean_cookies(headers, base)
  local count = headers:getNumValues("cookie")
  if count == 0 then
    return
  end
  local kept, dropped = {}, false
  for index = 0, count - 1 do
    for crumb in (headers:getAtIndex("cookie", index) or ""):gmatch("[^;]+") do
      local trimmed = crumb:match("^%s*(.-)%s*$")
      local name = trimmed:match("^([^=]*)"):match("^(.-)%s*$")
      if is_our_cookie(name, base) then
        dropped = true
      elseif trimmed ~= "" then
        kept[#kept + 1] = trimmed
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
      if is_our_authorization(part:match("^%s*(.-)%s*$")) then
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
  local rest = table.concat(kept, ","):match("^%s*(.-)%s*$")
  if rest ~= "" then
    headers:add("authorization", rest)
  end
end

local function decoded(text)
  return (text:gsub("%+", " "):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

local function clean_query(headers)
  local path = headers:get(":path") or ""
  local start = path:find("?", 1, true)
  if start == nil then
    return
  end
  local kept, dropped = {}, false
  for pair in (path:sub(start + 1) .. "&"):gmatch("([^&]*)&") do
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
  headers:replace(":path", path:sub(1, start - 1) .. (query == "" and "" or "?" .. query))
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
    clean_query(headers)
  end
  if route:get("remove_impersonate_headers") then
    impersonate_groups(handle)
  end
end

function envoy_on_request(handle)
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
