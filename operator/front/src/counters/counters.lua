-- All counters of one tenant, on the clock of this server. See `counters.rs` for what is promised.
--
-- KEYS[1]  the root of the tenant's keys, with its id as the hash tag
-- ARGV     verb, numbers, held:<id>, then for each window moments:<name>, then for each bound bound:<key>
--          The numbers are ttl_ms, nano_usd, tokens (-1 when nobody knows), how many windows,
--          then for each window: limit, span_ms, amount, 1 if it settles,
--          then for each bound: limit of nano_usd, limit of tokens, keep_ms, version (-1 for none), nano_usd, tokens of the ledger,
--          1 if it insists on them
-- answer   a word, now, and what the word needs; a bound is told as it is stored
--
-- What this costs is its commands, and what it makes: tables, text, and functions, above all those that refer to locals around them.
-- So what every call needs is in one hash, which is read by one command and written by one; numbers are packed as doubles; functions
-- of every call are given what they need, others are made where they are needed; and what runs out is looked for when the first of
-- it does.
--
-- Windows are written to replicas, and to no file: they are of the last minute, which a Redis that begins anew from its file has
-- missed, and they would be near half of what that file grows by. What is found of them there is as it was when the file was last
-- written in whole, and slides.
--
-- <root>:state           a hash, whose fields are
--   bound:<key>          until when it is kept, version, nano_usd and tokens of the ledger, those reserved, 1 if the ledger is to be
--                        asked again
--   moments:<name>       of a window: until when it is kept, number of the first moment in its list, of the first that counts and of
--                        the last, sum, first and last millisecond of those that count
--   held:<id>            what a reservation holds, as text: nano_usd, tokens, how many windows, for each its field and the number of
--                        the moment, then the fields of bounds
--   due                  when the first reservation runs out, when the first of the other fields does, when the whole hash does
-- <root>:moments:<name>  a list, a window's moments in their order: millisecond and amount
-- <root>:running         until when each reservation holds, by its field
-- <root>:kept            until when each other field is kept
local call, format, pack, unpacked = redis.call, string.format, struct.pack, struct.unpack

local function read_bound(field, line, now)
    local kept, version, spent, spent_tokens, reserved, reserved_tokens, is_stale = 0, -1, 0, 0, 0, 0, 0
    if line and struct.unpack('<d', line) >= now then
        kept, version, spent, spent_tokens, reserved, reserved_tokens, is_stale = struct.unpack('<ddddddd', line)
    end
    return { field = field, kept = kept, version = version, spent = spent, spent_tokens = spent_tokens, reserved = reserved,
        reserved_tokens = reserved_tokens, is_stale = is_stale, keep = 0, limit = 0, limit_tokens = 0, is_told = false,
        has_changed = false }
end

local function bound_line(bound)
    return struct.pack('<ddddddd', bound.kept, bound.version, bound.spent, bound.spent_tokens, bound.reserved, bound.reserved_tokens,
        bound.is_stale)
end

-- For what is written of windows. Ends with `to_all`.
local function to_replicas()
    redis.set_repl(redis.REPL_REPLICA)
end

local function to_all()
    redis.set_repl(redis.REPL_ALL)
end

local function window_line(w)
    return struct.pack('<ddddddd', w.kept, w.first, w.head, w.tail, w.sum, w.oldest, w.newest)
end

-- The moments from one number to another.
local function moments(w, from, to)
    return redis.call('LRANGE', w.key, string.format('%d', from - w.first), string.format('%d', to - w.first))
end

-- The clock was set back: what seems to come from the future counts as of now.
local function set_back(w, now)
    w.newest, w.has_changed = now, true
    for last = w.tail, w.head, -100 do
        local from = math.max(w.head, last - 99)
        local some = moments(w, from, last)
        for i = #some, 1, -1 do
            local millisecond, amount = struct.unpack('<dd', some[i])
            if millisecond <= now then return end
            redis.call('LSET', w.key, string.format('%d', from + i - 1 - w.first), struct.pack('<dd', now, amount))
        end
    end
    w.oldest = now
end

-- Takes out what is too old for the window. Tells whether anything is left; the list may be gone, too, where Redis needed its memory.
local function slide(w, now)
    if w.newest > now then set_back(w, now) end
    local gone, at_a_time = now - w.span, 4
    if w.newest <= gone then return false end
    while w.oldest <= gone do
        local some = moments(w, w.head, w.head + at_a_time - 1)
        if #some == 0 then return false end
        for i = 1, #some do
            local millisecond, amount = struct.unpack('<dd', some[i])
            w.oldest = millisecond
            if millisecond > gone then break end
            w.sum, w.head = w.sum - amount, w.head + 1
        end
        w.has_changed, at_a_time = true, 500
    end
    -- Not with every call.
    if w.head - w.first >= 100 then
        redis.call('LTRIM', w.key, string.format('%d', w.head - w.first), '-1')
        w.first = w.head
    end
    return true
end

-- How long until so much has left a window. Looks at its thousand oldest moments; then it is at least so long.
local function wait(w, excess, now)
    local freed, last = 0, now
    for from = w.head, math.min(w.tail, w.head + 999), 100 do
        local some = moments(w, from, math.min(w.tail, from + 99))
        for i = 1, #some do
            local millisecond, amount = struct.unpack('<dd', some[i])
            freed, last = freed + amount, millisecond
            if freed >= excess then return last + w.span - now end
        end
    end
    return last + w.span - now
end

-- What is known.

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local root, verb, numbers, own = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local state, running, kept = root .. ':state', root .. ':running', root .. ':kept'
local ttl, nano, tokens, windows_count, at = unpacked('<dddd', numbers)
local bounds_count = #ARGV - 3 - windows_count

local told = call('HMGET', state, 'due', unpack(ARGV, 3))
local terms = told[2]
-- When nobody knows, now.
local first_to_run_out, first_kept, ends, is_due_changed = 0, 0, 0, false
if told[1] then first_to_run_out, first_kept, ends = unpacked('<ddd', told[1]) end

-- Those of this call, and behind them others that its releases touch.
local bounds = {}
at = at + 32 * windows_count
for i = 1, bounds_count do
    local place, version, spent, spent_tokens, insists = 3 + windows_count + i, nil, nil, nil, nil
    local bound = read_bound(ARGV[place], told[place - 1], now)
    bound.limit, bound.limit_tokens, bound.keep, version, spent, spent_tokens, insists, at = unpacked('<ddddddd', numbers, at)
    -- The newer word of the ledger holds, unless it is in doubt and somebody insists.
    bound.is_told = version >= 0
    if version >= 0 and (version >= bound.version or (insists == 1 and bound.is_stale == 1)) then
        bound.version, bound.spent, bound.spent_tokens, bound.is_stale, bound.has_changed = version, spent, spent_tokens, 0, true
    end
    bounds[i] = bound
end

-- What is over.

if verb == 'settle' or first_to_run_out <= now or first_kept < now then
    local function bound_of(field)
        for _, bound in ipairs(bounds) do
            if bound.field == field then return bound end
        end
        local bound = read_bound(field, call('HGET', state, field), now)
        bounds[#bounds + 1] = bound
        return bound
    end

    -- What an estimate was off by, in the window's moment with this number. The moment may have left its window.
    local function correct(field, number, difference)
        local w, line = { key = root .. ':' .. field }, call('HGET', state, field)
        if not line then return end
        w.kept, w.first, w.head, w.tail, w.sum, w.oldest, w.newest = unpacked('<ddddddd', line)
        local place = format('%d', number - w.first)
        local moment = number >= w.head and number <= w.tail and call('LINDEX', w.key, place)
        if not moment then return end
        local millisecond, amount = unpacked('<dd', moment)
        w.sum = math.max(w.sum + difference, 0)
        to_replicas()
        call('LSET', w.key, place, pack('<dd', millisecond, math.max(amount + difference, 0)))
        call('HSET', state, field, window_line(w))
        to_all()
    end

    -- Gives a reservation up. With `used`, its windows learn what it used. Where its holder may have written to the ledger what is not
    -- known here, the bounds are to be asked for anew: all of them when it was given up by nobody, and those of which a settlement
    -- does not tell the ledger's word.
    local function release(field, line, used, is_forsaken)
        call('ZREM', running, field)
        if not line then return end
        call('HDEL', state, field)
        local parts = {}
        for part in string.gmatch(line, '%S+') do parts[#parts + 1] = part end
        local last_window = 3 + 2 * tonumber(parts[3])
        for i = 4, used and last_window or 0, 2 do correct(parts[i], tonumber(parts[i + 1]), used - tonumber(parts[2])) end
        for i = last_window + 1, #parts do
            local bound = bound_of(parts[i])
            if bound.version >= 0 then
                bound.reserved = math.max(bound.reserved - tonumber(parts[1]), 0)
                bound.reserved_tokens = math.max(bound.reserved_tokens - tonumber(parts[2]), 0)
                if is_forsaken or not bound.is_told then bound.is_stale = 1 end
                bound.has_changed = true
            end
        end
    end

    local function first_of(key)
        return tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) or math.huge
    end

    if verb == 'settle' then release(own, terms, tokens >= 0 and tokens or nil, false) end
    -- A few at a time, so that no call pays for all.
    if first_to_run_out <= now then
        for _, field in ipairs(call('ZRANGEBYSCORE', running, '-inf', format('%d', now), 'LIMIT', 0, 32)) do
            release(field, call('HGET', state, field), nil, true)
            if field == own then terms = false end
        end
        first_to_run_out, is_due_changed = first_of(running), true
    end
    if first_kept < now then
        local gone = call('ZRANGEBYSCORE', kept, '-inf', '(' .. format('%d', now), 'LIMIT', 0, 32)
        if #gone > 0 then
            call('HDEL', state, unpack(gone))
            call('ZREM', kept, unpack(gone))
        end
        first_kept, is_due_changed = first_of(kept), true
    end
end

-- What the answer is.

local answer
if verb ~= 'settle' then
    for i = 1, bounds_count do
        if bounds[i].version < 0 or bounds[i].is_stale == 1 then
            answer = answer or { 'unknown', now }
            answer[#answer + 1] = i - 1
        end
    end
end

local windows = {}
if verb == 'admit' and not answer then
    if windows_count > 0 then to_replicas() end
    local longest = -1
    at = 33
    for i = 1, windows_count do
        local field, line = ARGV[3 + i], told[2 + i]
        local w = { field = field, key = root .. ':' .. field, limit = 0, span = 0, amount = 0, settles = 0, has_changed = false,
            kept = 0, first = 0, head = 0, tail = 0, sum = 0, oldest = 0, newest = 0 }
        w.limit, w.span, w.amount, w.settles, at = unpacked('<dddd', numbers, at)
        if line then w.kept, w.first, w.head, w.tail, w.sum, w.oldest, w.newest = unpacked('<ddddddd', line) end
        if not line or not slide(w, now) then
            call('DEL', w.key)
            call('HDEL', state, field)
            -- Numbers that no moment before had: there is one a millisecond at most.
            w.kept, w.first, w.head, w.tail, w.sum, w.oldest, w.newest, w.has_changed = 0, now, now, now - 1, 0, nil, nil, false
        end
        windows[i] = w
        local excess = w.sum + math.min(w.amount, w.limit) - w.limit
        if excess > 0 then
            local pause = wait(w, excess, now)
            if pause > longest then longest, answer = pause, { 'full', now, i - 1, math.max(pause, 1) } end
        end
    end
    if windows_count > 0 then to_all() end
    for i = 1, answer and 0 or bounds_count do
        local bound = bounds[i]
        if bound.spent + bound.reserved + nano > bound.limit
            or bound.spent_tokens + bound.reserved_tokens + tokens > bound.limit_tokens then
            answer = { 'spent', now, i - 1, bound_line(bound) }
            break
        end
    end
end

-- What is taken. `until_when` is when the reservation runs out, if there is one.

local writes, until_when = {}, nil
if verb ~= 'settle' and not (answer and answer[1] == 'unknown') then
    if terms then
        -- An answer may have been lost: it is given again. What holds for the call only since then, as another day has begun or a budget
        -- was set, holds its reservation as well.
        answer, until_when = nil, now + ttl
        local held, since = terms .. ' ', ''
        local held_nano, held_tokens = string.match(terms, '^(%S+) (%S+)')
        for i = 1, bounds_count do
            local bound = bounds[i]
            if not string.find(held, ' ' .. bound.field .. ' ', 1, true) then
                bound.reserved = bound.reserved + tonumber(held_nano)
                bound.reserved_tokens = bound.reserved_tokens + tonumber(held_tokens)
                since = since .. ' ' .. bound.field
            end
        end
        if since ~= '' then writes[1], writes[2] = own, terms .. since end
    elseif answer and answer[1] == 'spent' then
        -- Where a clock that was ahead said until when reservations hold, those who are gone would hold theirs for long: they get as
        -- long as one that is made now. Who is still there says so before that.
        for _, field in ipairs(call('ZRANGEBYSCORE', running, '(' .. format('%d', now + 2 * ttl), '+inf', 'LIMIT', 0, 1000)) do
            call('ZADD', running, format('%d', now + ttl), field)
            first_to_run_out, is_due_changed = math.min(first_to_run_out, now + ttl), true
        end
    elseif not answer then
        local settling, settled = 0, ''
        if #windows > 0 then to_replicas() end
        for i = 1, #windows do
            local w = windows[i]
            w.sum, w.has_changed = w.sum + w.amount, true
            local last = w.newest == now and call('LINDEX', w.key, '-1')
            if last then
                local _, amount = unpacked('<dd', last)
                call('LSET', w.key, '-1', pack('<dd', now, amount + w.amount))
            else
                w.tail, w.newest, w.oldest = w.tail + 1, now, w.oldest or now
                local length = call('RPUSH', w.key, pack('<dd', now, w.amount))
                -- Redis may have needed the list's memory.
                if length == 1 then w.first, w.head, w.sum, w.oldest = w.tail, w.tail, w.amount, now end
            end
            if w.settles == 1 then settling, settled = settling + 1, settled .. ' ' .. w.field .. ' ' .. format('%d', w.tail) end
        end
        if #windows > 0 then to_all() end
        if bounds_count > 0 or settling > 0 then
            for i = 1, bounds_count do
                local bound = bounds[i]
                bound.reserved, bound.reserved_tokens = bound.reserved + nano, bound.reserved_tokens + tokens
            end
            until_when = now + ttl
            writes[1] = own
            writes[2] = format('%d %d %d', nano, tokens, settling) .. settled .. ' ' .. table.concat(ARGV, ' ', 4 + windows_count)
        end
    end
end
if until_when then
    call('ZADD', running, format('%d', until_when), own)
    if until_when < first_to_run_out then first_to_run_out, is_due_changed = until_when, true end
end

-- What is written down. Each field is kept for twice as long as is asked, so that not every call must keep it anew.

local is_granted = not answer
answer = answer or { 'granted', now }
local count, needed, is_kept_anew = #writes, until_when or 0, false
for i = 1, #bounds do
    local bound = bounds[i]
    local is_written = (is_granted or bound.has_changed) and bound.version >= 0
    if is_written and bound.kept < now + bound.keep then
        bound.kept, is_kept_anew = now + 2 * bound.keep, true
        call('ZADD', kept, format('%d', bound.kept), bound.field)
        first_kept, needed, is_due_changed = math.min(first_kept, bound.kept), math.max(needed, bound.kept), true
    end
    local line = bound_line(bound)
    if is_written then
        writes[count + 1], writes[count + 2] = bound.field, line
        count = count + 2
    end
    if is_granted and i <= bounds_count then answer[2 + i] = line end
end
local lines, lines_count = {}, 0
for i = 1, #windows do
    local w = windows[i]
    if w.has_changed then
        if w.newest == now and w.kept < now + w.span then
            w.kept, is_kept_anew = now + 2 * w.span, true
            call('ZADD', kept, format('%d', w.kept), w.field)
            call('PEXPIREAT', w.key, format('%d', w.kept))
            first_kept, needed, is_due_changed = math.min(first_kept, w.kept), math.max(needed, w.kept), true
        end
        lines[lines_count + 1], lines[lines_count + 2] = w.field, window_line(w)
        lines_count = lines_count + 2
    end
end
if lines_count > 0 then
    to_replicas()
    call('HSET', state, unpack(lines))
    to_all()
end
if ends < needed then ends, is_due_changed, is_kept_anew = 2 * needed - now, true, true end
if is_due_changed then
    writes[count + 1], writes[count + 2] = 'due', pack('<ddd', first_to_run_out, first_kept, ends)
    count = count + 2
end
if count > 0 then call('HSET', state, unpack(writes)) end
if is_kept_anew then
    call('PEXPIREAT', state, format('%d', ends))
    call('PEXPIREAT', kept, format('%d', ends))
end
return answer
