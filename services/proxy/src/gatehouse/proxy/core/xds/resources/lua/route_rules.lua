-- What routes say in their metadata, read once: equal marks mean equal metadata. What has no mark is
-- read each time.
--
-- Belongs in front of a script that reads them; `rules_by_mark` is what that script calls.

local function rules_by_mark(read)
  local known, count, most = {}, 0, 20000
  return function(handle)
    local route = handle:metadata()
    local mark = route:get("mark")
    local rules = known[mark or ""]
    if rules == nil then
      rules = read(route)
      if mark ~= nil then
        if count >= most then
          known, count = {}, 0
        end
        known[mark], count = rules, count + 1
      end
    end
    return rules
  end
end
