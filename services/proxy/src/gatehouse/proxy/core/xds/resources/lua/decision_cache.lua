-- Remembers what authorize allowed, so that it is not asked again about what cannot have changed.
--
-- A decision is found by its route, host, scheme, every credential of the request and just those of
-- its attributes that the route declares, all by full value. It counts only while the change table,
-- which the proxy process keeps in shared memory, is current, has seen no change of a record that
-- the decision rests on and no new configuration, and while its own time is not over. Whatever goes
-- wrong here leads to an ordinary check.
--
-- Belongs between `clean` and the request guard in one script; `cache` is what the guard calls.

local cache = {}

do
  local ffi = require("ffi")

  ffi.cdef [[
    typedef struct { int64_t seconds; int64_t nanoseconds; } gatehouse_time;
    int clock_gettime(int clock, gatehouse_time *time);
    int open(const char *path, int flags, ...);
    int close(int file);
    int64_t lseek(int file, int64_t offset, int whence);
    int64_t write(int file, const void *data, size_t size);
    void *mmap(void *at, size_t size, int protection, int flags, int file, int64_t offset);
    int munmap(void *at, size_t size);
  ]]

  -- Linux, as <fcntl.h>, <sys/mman.h> and <time.h> have it on every machine of 64 bits.
  local C = ffi.C
  local clock_monotonic = 1
  local read_only, read_write, append, close_on_exec = 0, 2, 0x400, 0x80000
  local may_read, may_write, shared = 1, 2, 1
  local from_here, from_end = 1, 2

  local table_path = @TABLE_PATH@
  local counters_path = @COUNTERS_PATH@
  local WORDS = @TABLE_WORDS@
  local PLACES = @COUNTER_PLACES@
  local magic, layout, header_words = @TABLE_MAGIC@, @TABLE_LAYOUT@, @HEADER_WORDS@
  local block_bytes, most_blocks, page_bytes = @BLOCK_BYTES@, @BLOCKS@, 4096

  local freshness_ns = 2e9
  local retry_ns = 1e9
  local longest_key = 16384
  local longest_wait_ns = 60e9 -- for the answer to a request whose decision may be remembered
  local most_awaited = 1024
  local bytes_per_decision, bytes_per_word = 256, 8 -- a table and bookkeeping, roughly
  local heap_share = 0.9 -- of the budget may be in use before garbage is collected with each answer
  local heap_besides = 4194304 -- bytes that scripts take without any decision, at most
  local heap_step = 400 -- KiB
  local least_pause, most_pause = 110, 400 -- garbage is collected when the heap is so many percent

  -- A decision is one plain list: what is read with each request lies together in memory. First what
  -- is in it, and where each part of the rest ends: slots and the versions they must not have risen
  -- above, names and values of metadata and of headers to set, names of headers to remove.
  local ENDS, CONFIGURATION, BYTES, TOUCHES_CREDENTIALS, GROUPS = 1, 2, 3, 4, 5
  local LAST_VERSION, LAST_METADATA, LAST_SET, LAST_REMOVED = 6, 7, 8, 9

  local time = ffi.new("gatehouse_time")

  local function now_ns()
    C.clock_gettime(clock_monotonic, time)
    return tonumber(time.seconds) * 1e9 + tonumber(time.nanoseconds)
  end

  -- Counters ------------------------------------------------------------------------------------

  local counts = ffi.new("double[?]", block_bytes / 8) -- until there is a block in the file
  local counts_are_shared = false

  -- A block at the end of the file: the kernel lets only one writer at a time append.
  local function share_counts()
    counts_are_shared = true
    local file = C.open(counters_path, read_write + append + close_on_exec)
    if file < 0 then
      return
    end
    local written = tonumber(C.write(file, ffi.new("char[?]", block_bytes), block_bytes))
    local place = tonumber(C.lseek(file, 0, from_here)) - block_bytes
    if written == block_bytes and place >= 0 and place % block_bytes == 0
        and place < most_blocks * block_bytes then
      local start = place - place % page_bytes
      local at = C.mmap(nil, page_bytes, may_read + may_write, shared, file, start)
      if tonumber(ffi.cast("intptr_t", at)) ~= -1 then
        local block = ffi.cast("double *", ffi.cast("char *", at) + (place - start))
        for index = 0, block_bytes / 8 - 1 do
          block[index] = counts[index]
        end
        -- What this interpreter holds ends with it.
        counts = ffi.gc(block, function()
          block[PLACES.decisions], block[PLACES.bytes], block[PLACES.heap] = 0, 0, 0
          C.munmap(at, page_bytes)
        end)
      end
    end
    C.close(file)
  end

  local next_complaint_ns = 0

  -- At most one line in a second: whatever is wrong may be so with every request.
  local function complain(handle, problem)
    counts[PLACES.bypass_failure] = counts[PLACES.bypass_failure] + 1
    local now = now_ns()
    if now >= next_complaint_ns then
      next_complaint_ns = now + 1e9
      handle:logErr("decision cache: " .. tostring(problem))
    end
  end

  local function count(place)
    counts[place] = counts[place] + 1
  end

  -- The change table ----------------------------------------------------------------------------

  local words, mask, server_version -- nil, nil, nil: there is none
  local mapping
  local epoch = 0 -- which table this is, counted here
  local next_try_ns = 0

  local young, old = {}, {} -- decisions by their key
  local young_bytes, old_bytes, young_count, old_count = 0, 0, 0, 0

  local function forget_all()
    young, old = {}, {}
    young_bytes, old_bytes, young_count, old_count = 0, 0, 0, 0
    counts[PLACES.decisions], counts[PLACES.bytes] = 0, 0
  end

  local function detach()
    if words ~= nil then
      words, mask, server_version, mapping = nil, nil, nil, nil
      forget_all()
    end
  end

  local function is_whole(found, size)
    local slots = tonumber(found[WORDS.slots])
    return found[WORDS.magic] == magic and found[WORDS.layout] == layout
        and found[WORDS.retired] == 0 and found[WORDS.server_version] ~= 0
        and slots >= 1 and slots <= 2 ^ 30 and bit.band(slots, slots - 1) == 0
        and size == (header_words + slots) * 8
  end

  local function attach(now)
    if now < next_try_ns or ffi.os ~= "Linux" or not ffi.abi("64bit") then
      return
    end
    next_try_ns = now + retry_ns
    local file = C.open(table_path, read_only + close_on_exec)
    if file < 0 then
      return
    end
    local size = tonumber(C.lseek(file, 0, from_end))
    if size >= header_words * 8 then
      local at = C.mmap(nil, size, may_read, shared, file, 0)
      if tonumber(ffi.cast("intptr_t", at)) ~= -1 then
        local found = ffi.cast("const volatile uint64_t *", at)
        if is_whole(found, size) then
          mapping = ffi.gc(at, function(mapped) C.munmap(mapped, size) end)
          words, mask = found, tonumber(found[WORDS.slots]) - 1
          server_version = tostring(found[WORDS.server_version]):match("^%d+")
          epoch = epoch + 1
        else
          C.munmap(at, size)
        end
      end
    end
    C.close(file)
  end

  -- Why the table cannot be used now; nil when it can.
  local function trouble(now)
    if words ~= nil and words[WORDS.retired] ~= 0 then
      detach()
      next_try_ns = now -- the next one is in its place already, if there is one
    end
    if words == nil then
      attach(now)
      if words == nil then
        return PLACES.bypass_off
      end
    end
    local age = now - tonumber(words[WORDS.fresh_at])
    if age > freshness_ns or age < -freshness_ns then
      return PLACES.bypass_stale
    end
    return nil
  end

  -- The clock was read before: whatever the table holds now is at least as new.
  local function holds(decision, now)
    if now >= decision[ENDS]
        or tonumber(words[WORDS.configuration]) ~= decision[CONFIGURATION] then
      return false
    end
    for index = LAST_REMOVED + 1, decision[LAST_VERSION], 2 do
      if tonumber(words[decision[index]]) > decision[index + 1] then
        return false
      end
    end
    return true
  end

  -- What stays clear of Envoy's functions is worth compiling.
  jit.on(now_ns)
  jit.on(holds)

  -- Keys ----------------------------------------------------------------------------------------

  local function part(value)
    return value == nil and "-" or #value .. ":" .. value
  end

  -- Every cookie that could be the session's: what authorize finds is among them, in this order.
  local function session_cookies(cookie, name)
    if cookie == nil or not cookie:find(name, 1, true) then
      return nil
    elseif not cookie:find(";", 1, true) then
      return cookie
    end
    local found = {}
    for crumb in cookie:gmatch("[^;]+") do
      if crumb:find(name, 1, true) then
        found[#found + 1] = crumb
      end
    end
    return table.concat(found, ";")
  end

  local function without_port(address)
    return address:match("^(.*):%d+$") or address
  end

  local function certificate(handle)
    local ssl = handle:streamInfo():downstreamSslConnection()
    if ssl == nil or ssl:peerCertificatePresented() ~= true then
      return nil
    end
    return ssl:urlEncodedPemEncodedPeerCertificateChain()
  end

  -- What the route declares besides.
  local function declared(handle, headers, seen, path, plan)
    local found = {}
    if plan.method then
      found[#found + 1] = part(seen[":method"])
    end
    if plan.path then
      found[#found + 1] = part(path)
    end
    if plan.source then
      local info = handle:streamInfo()
      found[#found + 1] = part(without_port(info:downstreamRemoteAddress()))
      found[#found + 1] = part(without_port(info:downstreamDirectRemoteAddress()))
    end
    if plan.forwarded then
      found[#found + 1] = part(headers:get("x-forwarded-for"))
    end
    if plan.certificate then
      found[#found + 1] = part(certificate(handle))
    end
    for _, name in ipairs(plan.headers) do
      found[#found + 1] = part(headers:get(name))
    end
    return table.concat(found)
  end

  -- The key of a request, or nil and the place of the reason why it has none.
  local function key_of(handle, headers, seen, plan)
    if seen.stream then
      return nil, PLACES.bypass_upgrade
    end
    local path = seen[":path"] or ""
    if seen.assertion or path:find("@SESSION_PARAMETER@", 1, true) then
      return nil, PLACES.bypass_credential
    end
    local query = path:find("?", 1, true)
    if query ~= nil then
      path = path:sub(1, query - 1)
    end
    if path:find("#", 1, true)
        or (path:find("%", 1, true) and path:gsub("%%%x%x", ""):find("%", 1, true)) then
      return nil, PLACES.bypass_path
    end
    local authority, scheme = seen[":authority"] or "", seen[":scheme"] or ""
    local cookies = session_cookies(seen["cookie"], plan.cookie)
    local key = plan.name .. #authority .. ":" .. authority .. #scheme .. ":" .. scheme
        .. part(cookies) .. part(seen["x-pomerium-authorization"]) .. part(seen["authorization"])
    if plan.is_particular then
      key = key .. declared(handle, headers, seen, path, plan)
    end
    if #key > longest_key then
      return nil, PLACES.bypass_size
    end
    return key
  end

  -- Decisions -----------------------------------------------------------------------------------

  local function age()
    counts[PLACES.evictions] = counts[PLACES.evictions] + old_count
    old, old_bytes, old_count = young, young_bytes, young_count
    young, young_bytes, young_count = {}, 0, 0
  end

  -- What was forgotten is in the way until it is collected. Where that does not go fast enough, a
  -- little is done at once; where it does not give enough, more is forgotten.
  local function bound_heap(budget)
    local heap = collectgarbage("count") * 1024
    if heap > heap_share * budget + heap_besides and collectgarbage("step", heap_step) then
      heap = collectgarbage("count") * 1024
      if heap > heap_share * budget + heap_besides then
        age()
      end
    end
    counts[PLACES.heap] = heap
  end

  -- Few decisions are collected seldom, for each time touches them all; the more there are, the less
  -- garbage may lie beside them.
  local function set_pause(budget)
    local used = young_bytes + old_bytes + heap_besides
    local pause = math.floor(100 * (budget + heap_besides) / used)
    collectgarbage("setpause", math.max(least_pause, math.min(most_pause, pause)))
  end

  local function keep(key, decision, budget)
    local bytes = decision[BYTES]
    local known = young[key]
    if known ~= nil then
      young_bytes, young_count = young_bytes - known[BYTES], young_count - 1
      young[key] = nil
    end
    if bytes > budget / 2 then
      return
    end
    if young_bytes + bytes > budget / 2 then
      age()
    end
    young[key] = decision
    young_bytes, young_count = young_bytes + bytes, young_count + 1
    counts[PLACES.decisions] = young_count + old_count
    counts[PLACES.bytes] = young_bytes + old_bytes
  end

  -- One that is still in use moves to the young ones, which are kept for longer.
  local function find(key)
    local decision = young[key]
    if decision ~= nil then
      return decision
    end
    decision = old[key]
    if decision ~= nil then
      old[key] = nil
      old_bytes, old_count = old_bytes - decision[BYTES], old_count - 1
      keep(key, decision, tonumber(words[WORDS.budget]))
    end
    return decision
  end

  -- Every header is as ext_authz and the script after it would have it, then the mark that lets the
  -- request pass: nothing can fail after that. It is the last to be paid for by each request, so
  -- there is nothing here that need not be.
  local function apply(handle, headers, seen, rules, decision)
    local metadata = handle:streamInfo():dynamicMetadata()
    for index = decision[LAST_VERSION] + 1, decision[LAST_METADATA], 2 do
      metadata:set("@DECISION_NAMESPACE@", decision[index], decision[index + 1])
    end
    for index = decision[LAST_METADATA] + 1, decision[LAST_SET], 2 do
      headers:replace(decision[index], decision[index + 1])
    end
    for index = decision[LAST_SET] + 1, decision[LAST_REMOVED] do
      headers:remove(decision[index])
    end
    clean(headers, rules, not decision[TOUCHES_CREDENTIALS] and seen or nil)
    if rules.impersonates then
      for _, group in ipairs(decision[GROUPS]) do
        headers:add("impersonate-group", group)
      end
    end
    metadata:set("@REMEMBERED_NAMESPACE@", "@REMEMBERED_FIELD@", true)
  end

  -- Requests that are with authorize now, by number, in order.
  local awaited, first_awaited, last_awaited = {}, 1, 0

  local function drop_old_awaited(now)
    while first_awaited <= last_awaited do
      local oldest = awaited[first_awaited]
      if oldest ~= nil and last_awaited - first_awaited < most_awaited
          and now - oldest.asked < longest_wait_ns then
        return
      end
      awaited[first_awaited] = nil
      first_awaited = first_awaited + 1
    end
  end

  local function await(handle, key, now)
    drop_old_awaited(now)
    last_awaited = last_awaited + 1
    awaited[last_awaited] = {
      key = key, asked = now, epoch = epoch,
      configuration = tonumber(words[WORDS.configuration]),
    }
    handle:streamInfo():dynamicMetadata():set("@AWAITED_NAMESPACE@", "number", last_awaited)
  end

  local function recall(handle, headers, seen, rules)
    local plan = rules.plan
    if plan == nil then
      count(PLACES.bypass_route)
      return false
    end
    local now = now_ns()
    local reason = trouble(now)
    if reason ~= nil then
      count(reason)
      return false
    end
    local key
    key, reason = key_of(handle, headers, seen, plan)
    if key == nil then
      count(reason)
      return false
    end
    local decision = find(key)
    if decision ~= nil then
      if holds(decision, now) then
        apply(handle, headers, seen, rules, decision)
        count(PLACES.hits)
        return true
      end
      count(PLACES.outdated)
    end
    count(PLACES.misses)
    await(handle, key, now)
    return false
  end

  -- True when the request is allowed by a remembered decision, and all is done that the answer to a
  -- check and the cleaning after it would have done. `seen`: headers by name, as authorize would get
  -- them.
  function cache.recall(handle, headers, seen, rules)
    if not counts_are_shared then
      pcall(share_counts)
    end
    local done, recalled = pcall(recall, handle, headers, seen, rules)
    if not done then
      complain(handle, recalled)
      return false
    end
    return recalled
  end

  -- Answers -------------------------------------------------------------------------------------

  -- A text of authorize's, from a place on: its length, a colon, and the text itself.
  local function read_text(source, place)
    local length, start = source:match("^(%d+):()", place)
    local stop = start + length
    assert(stop - 1 <= #source)
    return source:sub(start, stop - 1), stop
  end

  -- Names and values of headers to set, and names of headers to remove.
  local function read_headers(source, place)
    local set, removed = {}, {}
    while place <= #source do
      local kind, name = source:sub(place, place)
      name, place = read_text(source, place + 1)
      if kind == "=" then
        set[#set + 1] = name
        set[#set + 1], place = read_text(source, place)
      else
        assert(kind == "-")
        removed[#removed + 1] = name
      end
    end
    return set, removed
  end

  -- Slots, each with the version that it must not have risen above.
  local function read_dependencies(text)
    local found = {}
    for version, keys in text:gmatch("(%d+):([%d,]+)") do
      for key in keys:gmatch("%d+") do
        found[#found + 1] = header_words + bit.band(tonumber(key), mask)
        found[#found + 1] = tonumber(version)
      end
    end
    return found
  end

  local function append(list, more)
    for index = 1, #more do
      list[#list + 1] = more[index]
    end
    return #list
  end

  local credentials = {
    ["authorization"] = true, ["cookie"] = true, ["referer"] = true,
    ["x-pomerium-authorization"] = true,
  }

  -- Whether what an allow says goes for headers that are to be cleaned: then those of the request
  -- do not tell any more what there is.
  local function touches_credentials(set, removed)
    for index = 1, #set, 2 do
      if credentials[set[index]:lower()] then
        return true
      end
    end
    for _, name in ipairs(removed) do
      if credentials[name:lower()] then
        return true
      end
    end
    return false
  end

  local function remember(asked, answer)
    local envelope = answer["@ENVELOPE_FIELD@"]
    if type(envelope) ~= "string" or answer["@DECISION_FIELD@"] ~= "@DECISION_ALLOW@"
        or words == nil or asked.epoch ~= epoch then
      return
    end
    local history, lifetime_ms, dependencies, place =
        envelope:match("^(%d+) (%d+) ([%d:,;]*)\n()")
    if history ~= server_version then
      return
    end
    local set, removed = read_headers(envelope, place)
    local metadata = {}
    for _, name in ipairs({"session-id", "user"}) do -- for the access log
      if answer[name] ~= nil then
        metadata[#metadata + 1] = name
        metadata[#metadata + 1] = answer[name]
      end
    end
    -- Its time counts from when the request came, before anything was looked up for it.
    local decision = {
      asked.asked + tonumber(lifetime_ms) * 1e6, asked.configuration, 0,
      touches_credentials(set, removed), answer["impersonate-groups"] or {}, 0, 0, 0, 0,
    }
    decision[LAST_VERSION] = append(decision, read_dependencies(dependencies))
    decision[LAST_METADATA] = append(decision, metadata)
    decision[LAST_SET] = append(decision, set)
    decision[LAST_REMOVED] = append(decision, removed)
    decision[BYTES] = bytes_per_decision + bytes_per_word * #decision + #asked.key + #envelope
    local budget = tonumber(words[WORDS.budget])
    keep(asked.key, decision, budget)
    set_pause(budget)
    bound_heap(budget)
    count(PLACES.insertions)
  end

  local function learn(handle)
    local metadata = handle:streamInfo():dynamicMetadata()
    local mark = metadata:get("@AWAITED_NAMESPACE@")
    if mark == nil then
      return
    end
    local asked = awaited[mark["number"]]
    awaited[mark["number"]] = nil
    drop_old_awaited(now_ns())
    -- Only what went on to the upstream's side was allowed, whatever else the answer says.
    if asked ~= nil and mark["@PASSED_FIELD@"] == true then
      remember(asked, metadata:get("@DECISION_NAMESPACE@") or {})
    end
  end

  -- To be called with every response.
  function cache.learn(handle)
    if first_awaited > last_awaited then
      return
    end
    local learnt, problem = pcall(learn, handle)
    if not learnt then
      complain(handle, problem)
    end
  end
end
