-- Runs after authorization: nothing passes without a decision, and no credential of ours leaves for
-- an upstream, in whatever form it came. With a remembered decision the request guard has seen to
-- both already.
--
-- Belongs behind `rules_by_mark` and `clean` in one script.
--
-- Route metadata says what to do: `undecided` (nobody is asked about this route; without it an allow
-- must be there), `remove_pomerium_cookie` (the name of the session cookie),
-- `remove_pomerium_authorization`, `remove_impersonate_headers` (a Kubernetes route).

-- One line for each group, since a name may hold a comma. Authorize says which; what the client
-- sent is gone since the request guard.
local function impersonate_groups(handle)
  local decision = handle:streamInfo():dynamicMetadata():get("@DECISION_NAMESPACE@")
  for _, group in ipairs((decision or {})["impersonate-groups"] or {}) do
    handle:headers():add("impersonate-group", group)
  end
end

local function read_rules(route)
  return {
    undecided = route:get("undecided") == true,
    cookie = route:get("remove_pomerium_cookie") or "",
    credentials = route:get("remove_pomerium_authorization") == true,
    impersonates = route:get("remove_impersonate_headers") == true,
  }
end

local rules_of = rules_by_mark(read_rules)

local function leave_clean(handle, rules)
  clean(handle:headers(), rules)
  if rules.impersonates then
    impersonate_groups(handle)
  end
end

-- Whether the request may go on, and the rules of its route unless it is clean. Envoy takes an
-- answer that says nothing for an allow. Where no route matches, nobody is asked, and Envoy says
-- that there is nothing.
local function is_allowed(handle)
  local info = handle:streamInfo()
  local metadata = info:dynamicMetadata()
  if (metadata:get("@REMEMBERED_NAMESPACE@") or {})["@REMEMBERED_FIELD@"] == true then
    return true, nil
  end
  local rules = rules_of(handle)
  if rules.undecided then
    return true, rules
  end
  local decision = metadata:get("@DECISION_NAMESPACE@") or {}
  if decision["@DECISION_FIELD@"] ~= "@DECISION_ALLOW@" then
    return info:routeName() == "", rules
  end
  if decision["@ENVELOPE_FIELD@"] ~= nil then
    metadata:set("@AWAITED_NAMESPACE@", "@PASSED_FIELD@", true)
  end
  return true, rules
end

function envoy_on_request(handle)
  local decided, allowed, rules = pcall(is_allowed, handle)
  if not decided or not allowed then
    handle:logErr("clean upstream: " .. (decided and "no decision" or tostring(allowed)))
    handle:respond({[":status"] = "503", ["content-type"] = "text/plain"}, "no decision\n")
    return
  elseif rules == nil then
    return
  end
  local cleaned, problem = pcall(leave_clean, handle, rules)
  if not cleaned then
    handle:logErr("clean upstream: " .. tostring(problem))
    handle:respond({[":status"] = "500", ["content-type"] = "text/plain"}, "internal error\n")
  end
end
