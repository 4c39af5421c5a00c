-- Takes every credential of ours out of a request, in whatever form it came.
--
-- Belongs in front of a script that forwards requests; `clean` is what that script calls. Everything
-- here takes time in proportion to its input: a client chooses what these patterns meet.

local clean

do
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

  -- What is left of a Cookie header; false when nothing goes.
  local function other_cookies(line, base)
    local kept, dropped = {}, false
    for crumb in line:gmatch("[^;]+") do
      local rest, changed = clean_cookie(crumb, base)
      dropped = dropped or changed
      if rest ~= "" then
        kept[#kept + 1] = rest
      end
    end
    return dropped and table.concat(kept, "; ")
  end

  -- Browsers send the same line again and again. By the cookie's name, then by the line. Those in use
  -- move to the young ones, which are kept for longer, so that a flood of other lines displaces them
  -- only if it goes faster than they come.
  local young_lines, old_lines, young_bytes = {}, {}, 0
  local most_young_bytes, longest_line = 1048576, 4096

  local function keep_line(base, line, rest)
    if #line > longest_line then
      return
    end
    if young_bytes + #line > most_young_bytes then
      old_lines, young_lines, young_bytes = young_lines, {}, 0
    end
    local known = young_lines[base]
    if known == nil then
      known = {}
      young_lines[base] = known
    end
    known[line], young_bytes = rest, young_bytes + #line
  end

  local function rest_of(base, line)
    local known = young_lines[base]
    local rest = known and known[line]
    if rest == nil then
      known = old_lines[base]
      rest = known and known[line]
      if rest == nil then
        rest = other_cookies(line, base)
      end
      keep_line(base, line, rest)
    end
    return rest
  end

  -- Several lines have been joined to one by the request guard.
  local function clean_cookies(headers, base)
    local line = headers:get("cookie")
    if line == nil then
      return
    end
    local rest = rest_of(base, line)
    if rest == "" then
      headers:remove("cookie")
    elseif rest then
      headers:replace("cookie", rest)
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
    if start == nil or not (url:find("%", start, true)
        or url:find("pomerium_session", start, true)) then
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

  -- `rules`: `cookie`, the name of the session cookie ("": none is removed), and `credentials`, true
  -- where the others go too. `seen`, if given, holds by name all that the request has of cookie,
  -- authorization, x-pomerium-authorization, :path and referer: what is not there is not looked for.
  function clean(headers, rules, seen)
    if rules.cookie ~= "" and (seen == nil or seen["cookie"] ~= nil) then
      clean_cookies(headers, rules.cookie)
    end
    if not rules.credentials then
      return
    end
    if seen == nil or seen["authorization"] ~= nil or seen["x-pomerium-authorization"] ~= nil then
      clean_authorization(headers)
    end
    if seen == nil or (seen[":path"] or ""):find("?", 1, true) then
      clean_query(headers, ":path")
    end
    if seen == nil or seen["referer"] ~= nil then
      clean_referer(headers)
    end
  end
end
