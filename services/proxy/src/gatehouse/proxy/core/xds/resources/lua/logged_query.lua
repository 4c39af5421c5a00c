-- The query as the access log may show it: without the values of parameters that are credentials,
-- or that hold one. Runs only where `query` is among the fields.

local ENDINGS = { @SECRET_ENDINGS@ }
local PARAMETERS = { @SECRET_PARAMETERS@ }
local STEMS = { @SECRET_PARAMETER_STEMS@ }
local REDACTED = "@REDACTED@"
local LIMIT = @QUERY_LIMIT@

local is_parameter = {}
for _, name in ipairs(PARAMETERS) do
  is_parameter[name] = true
end

local function decoded(text)
  return (text:gsub("%+", " "):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

local function is_secret(name)
  if is_parameter[name] or name:sub(1, 24) == "x_pomerium_jwt_assertion" then
    return true
  end
  for _, stem in ipairs(STEMS) do
    if name:sub(1, #stem) == stem then
      return true
    end
  end
  for _, ending in ipairs(ENDINGS) do
    if name == ending or name:sub(-#ending - 1) == "_" .. ending then
      return true
    end
  end
  return false
end

-- A token, or a URL with a query or a password of its own.
local function holds_secret(text)
  return text:find("eyJ[%w_%-]+%.") or text:find("?", 1, true) or text:find("//[^/]*@")
end

local function shown(pair)
  local name, value = pair:match("^([^=]*)=(.+)$")
  if name == nil then
    return holds_secret(decoded(pair)) and REDACTED or pair
  end
  local plain = decoded(name):lower():gsub("-", "_")
  if is_secret(plain) or holds_secret(decoded(value)) then
    return name .. "=" .. REDACTED
  end
  return pair
end

function envoy_on_request(handle)
  local path = handle:headers():get(":path") or ""
  local start = path:find("?", 1, true)
  if start == nil then
    return
  end
  local query = path:sub(start + 1)
  if #query > LIMIT then
    query = (query:sub(1, LIMIT):match("^(.*)&") or "") .. "&…"
  end
  local text = query:gsub("[^&;]+", shown)
  handle:streamInfo():dynamicMetadata():set("@ACCESS_LOG_NAMESPACE@", "query", text)
end
