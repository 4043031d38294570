-- All counters of one tenant, on the clock of this server. See `counters.rs` for what is promised.
--
-- KEYS[1]  the root of the tenant's keys, with its id as the hash tag
-- ARGV     verb, id, ttl_ms, nano_usd, tokens, windows, bounds,
--          then for each window: name, limit, span_ms, amount, settles
--          then for each bound: key, limit of nano_usd, limit of tokens, keep_ms, version, nano_usd, tokens of the ledger
--          `-` stands for none
--
-- What this costs is its commands, and numbers as text: what belongs together is in one value, read and written once, its numbers
-- packed as doubles.
--
-- <root>:bound:<key>    a bound: version, nano_usd and tokens of the ledger, then those reserved, then 1 if the ledger is to be asked
--                       again, then until when it is kept
-- <root>:window:<name>  a hash, a window's moments in a row: <number> is its millisecond, a<number> its amount, and m says of all of
--                       them: first and last number, sum, first and last millisecond
-- <root>:reservations   what each reservation holds, by id: nano_usd, tokens, how many windows, for each its name and the number of the
--                       moment, then keys of bounds
-- <root>:held           until when each reservation holds
local root = KEYS[1]
local held, terms = root .. ':held', root .. ':reservations'

local call, format, pack, unpacked = redis.call, string.format, struct.pack, struct.unpack

local function text(number) return format('%d', number) end

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local now_text = text(now)
local verb, id, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local nano, tokens = tonumber(ARGV[4]), ARGV[5] ~= '-' and tonumber(ARGV[5]) or nil

-- Bounds of this call, and all that were read, by name.
local bounds, known = {}, {}

local function spent_key(name) return root .. ':bound:' .. name end

local function bound_of(name, line)
    local bound = { name = name, spent = { 0, 0 }, reserved = { 0, 0 } }
    known[name] = bound
    if line then
        local s, r, is_stale = bound.spent, bound.reserved
        bound.version, s[1], s[2], r[1], r[2], is_stale, bound.kept = unpacked('ddddddd', line)
        bound.is_stale = is_stale == 1
    end
    return bound
end

-- Writes down what has changed of bounds. Those of this call are kept for twice as long as it says, so that not every call must
-- keep them anew.
local function save()
    for name, bound in pairs(known) do
        if bound.has_changed then
            local keep, s, r = bound.keep, bound.spent, bound.reserved
            local is_kept = not keep or (bound.kept and bound.kept >= now + keep)
            if not is_kept then bound.kept = now + 2 * keep end
            local line = pack('ddddddd', bound.version, s[1], s[2], r[1], r[2], bound.is_stale and 1 or 0, bound.kept)
            if is_kept then
                call('SET', spent_key(name), line, 'KEEPTTL')
            else
                call('SET', spent_key(name), line, 'PX', text(2 * keep))
            end
        end
    end
end

local function window_key(name) return root .. ':window:' .. name end

local function meta(w) return pack('ddddd', w.head, w.tail, w.sum, w.oldest, w.newest) end

local function read_meta(w, line) w.head, w.tail, w.sum, w.oldest, w.newest = unpacked('ddddd', line) end

-- The moments from one number to another: their fields, and their milliseconds and amounts in turns.
local function moments(w, first, last)
    local fields = {}
    for number = first, last do
        fields[#fields + 1] = text(number)
        fields[#fields + 1] = 'a' .. text(number)
    end
    return fields, call('HMGET', w.key, unpack(fields))
end

-- Gives a reservation up. With `used`, its windows learn what it used; when it was given up by nobody, what its holder may have
-- written to the ledger is not known here, and the bounds are to be asked for anew.
local function release(id, used, is_forsaken)
    local line = call('HGET', terms, id)
    if not line then return end
    call('HDEL', terms, id)
    call('ZREM', held, id)
    local parts = {}
    for part in string.gmatch(line, '%S+') do parts[#parts + 1] = part end
    local windows = tonumber(parts[3])
    for i = 4, used and 3 + 2 * windows or 0, 2 do
        local w, field, difference = { key = window_key(parts[i]) }, 'a' .. parts[i + 1], used - tonumber(parts[2])
        local s = call('HMGET', w.key, 'm', field)
        -- The moment may have left its window.
        if s[1] and s[2] then
            read_meta(w, s[1])
            w.sum = math.max(w.sum + difference, 0)
            call('HSET', w.key, field, text(math.max(tonumber(s[2]) + difference, 0)), 'm', meta(w))
        end
    end
    for i = 4 + 2 * windows, #parts do
        local name = parts[i]
        local bound = known[name] or bound_of(name, call('GET', spent_key(name)))
        if bound.version then
            bound.reserved[1] = math.max(bound.reserved[1] - tonumber(parts[1]), 0)
            bound.reserved[2] = math.max(bound.reserved[2] - tonumber(parts[2]), 0)
            bound.is_stale = bound.is_stale or is_forsaken
            bound.has_changed = true
        end
    end
end

-- Where a clock that was ahead said until when reservations hold, those who are gone would hold theirs for long: they get as long as
-- one that is made now. Who is still there says so before that.
local function bring_back()
    for _, id in ipairs(call('ZRANGEBYSCORE', held, '(' .. text(now + 2 * ttl), '+inf', 'LIMIT', 0, 1000)) do
        call('ZADD', held, text(now + ttl), id)
    end
end

-- A few at a time, so that no call pays for all.
local function expire()
    for _, id in ipairs(call('ZRANGEBYSCORE', held, '-inf', now, 'LIMIT', 0, 32)) do
        if call('HEXISTS', terms, id) == 1 then release(id, nil, true) else call('ZREM', held, id) end
    end
end

-- The clock was set back: what seems to come from the future counts as of now.
local function set_back(w)
    local number, is_ahead = w.tail, true
    while is_ahead and number >= w.head do
        local fields, s = moments(w, math.max(w.head, number - 99), number)
        local changes = {}
        for i = #s - 1, 1, -2 do
            is_ahead = tonumber(s[i]) > now
            if not is_ahead then break end
            changes[#changes + 1] = fields[i]
            changes[#changes + 1] = now_text
            number = number - 1
        end
        if #changes > 0 then call('HSET', w.key, unpack(changes)) end
    end
    w.newest, w.has_changed = now, true
    if number < w.head then w.oldest = now end
end

-- Reads what is known of a window, and takes out what is too old.
local function slide(w)
    w.key = window_key(w.name)
    local line = call('HGET', w.key, 'm')
    if line then
        read_meta(w, line)
        if w.newest > now then set_back(w) end
        if w.newest <= now - w.span then
            call('DEL', w.key)
            line = nil
        end
    end
    if not line then
        -- Numbers that no moment before had: there is one a millisecond at most.
        w.head, w.tail, w.sum, w.oldest, w.newest, w.has_changed = now, now - 1, 0, nil, nil, false
        return
    end
    w.before = w.newest
    local at_a_time = 4
    while w.oldest <= now - w.span do
        local fields, s = moments(w, w.head, math.min(w.tail, w.head + at_a_time - 1))
        local gone = {}
        for i = 1, #s, 2 do
            w.oldest = tonumber(s[i])
            if w.oldest > now - w.span then break end
            w.sum, w.head = w.sum - tonumber(s[i + 1]), w.head + 1
            gone[#gone + 1] = fields[i]
            gone[#gone + 1] = fields[i + 1]
        end
        if #gone > 0 then call('HDEL', w.key, unpack(gone)) end
        w.has_changed, at_a_time = true, 500
    end
end

-- How long until so much has left a window. Looks at its thousand oldest moments; then it is at least so long.
local function wait(w, excess)
    local freed, last = 0, now
    for first = w.head, math.min(w.tail, w.head + 999), 100 do
        local _, s = moments(w, first, math.min(w.tail, first + 99))
        for i = 1, #s, 2 do
            freed, last = freed + tonumber(s[i + 1]), tonumber(s[i])
            if freed >= excess then return last + w.span - now end
        end
    end
    return last + w.span - now
end

-- The number of the moment that is now.
local function number_now(w) return text(w.newest == now and w.tail or w.tail + 1) end

-- Lets an amount through, now.
local function let_through(w)
    local number, is_there = number_now(w), w.newest == now
    w.sum = w.sum + w.amount
    if is_there then
        call('HINCRBY', w.key, 'a' .. number, w.amount_text)
        call('HSET', w.key, 'm', meta(w))
    else
        w.tail, w.newest, w.oldest = w.tail + 1, now, w.oldest or now
        call('HSET', w.key, number, now_text, 'a' .. number, w.amount_text, 'm', meta(w))
    end
    -- Twice in a span is often enough when it is for two.
    if not w.before or math.floor(w.before * 2 / w.span) ~= math.floor(now * 2 / w.span) then
        call('PEXPIRE', w.key, text(2 * w.span + 1000))
    end
end

local windows, at = {}, 8
for i = 1, tonumber(ARGV[6]) do
    windows[i] = { name = ARGV[at], limit = tonumber(ARGV[at + 1]), span = tonumber(ARGV[at + 2]),
        amount = tonumber(ARGV[at + 3]), amount_text = ARGV[at + 3], settles = ARGV[at + 4] == '1' }
    at = at + 5
end
local count = tonumber(ARGV[7])
if count > 0 then
    local keys = {}
    for i = 1, count do keys[i] = spent_key(ARGV[at + 7 * (i - 1)]) end
    for i, line in ipairs(call('MGET', unpack(keys))) do
        local bound = bound_of(ARGV[at], line)
        bound.limits, bound.keep = { tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]) }, tonumber(ARGV[at + 3])
        local version = tonumber(ARGV[at + 4])
        -- The newer word of the ledger holds.
        if version and not (bound.version and bound.version > version) then
            bound.version, bound.is_stale, bound.has_changed = version, false, true
            bound.spent = { tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]) }
        end
        bounds[i] = bound
        at = at + 7
    end
end

local function granted()
    local answer = { 'granted', now }
    for _, bound in ipairs(bounds) do
        -- Kept anew.
        bound.has_changed = bound.version ~= nil
        for _, amounts in ipairs({ bound.spent, bound.reserved }) do
            answer[#answer + 1] = amounts[1]
            answer[#answer + 1] = amounts[2]
        end
    end
    save()
    return answer
end

local function slid()
    for _, w in ipairs(windows) do
        if w.has_changed then call('HSET', w.key, 'm', meta(w)) end
    end
end

local function refused(answer)
    save()
    slid()
    return answer
end

if verb == 'settle' then release(id, tokens, false) end
expire()
if verb == 'settle' then return granted() end

local unknown = { 'unknown', now }
for i, bound in ipairs(bounds) do
    if not bound.version or bound.is_stale then unknown[#unknown + 1] = i - 1 end
end
if #unknown > 2 then return refused(unknown) end

-- Its answer may have been lost: it is answered as before.
local function again()
    call('ZADD', held, now + ttl, id)
    slid()
    return granted()
end

local line = { ARGV[4], ARGV[5], '0' }
if verb == 'admit' then
    local longest, full = -1, nil
    for i, w in ipairs(windows) do
        slide(w)
        local excess = w.sum + math.min(w.amount, w.limit) - w.limit
        if excess > 0 then
            local pause = wait(w, excess)
            if pause > longest then longest, full = pause, i end
        end
    end
    local answer = full and { 'full', now, full - 1, math.max(longest, 1) }
    for i, bound in ipairs(bounds) do
        local spent, reserved, limits = bound.spent, bound.reserved, bound.limits
        if not answer and ((limits[1] and spent[1] + reserved[1] + nano > limits[1])
            or (limits[2] and spent[2] + reserved[2] + tokens > limits[2])) then
            answer = { 'spent', now, i - 1, spent[1], spent[2], reserved[1], reserved[2] }
        end
    end
    if answer then
        if call('HEXISTS', terms, id) == 1 then return again() end
        if answer[1] == 'spent' then bring_back() end
        return refused(answer)
    end
    local settling = 0
    for _, w in ipairs(windows) do
        if w.settles then
            settling = settling + 1
            line[#line + 1] = w.name
            line[#line + 1] = number_now(w)
        end
    end
    line[3] = text(settling)
end
if #bounds > 0 or line[3] ~= '0' then
    for _, bound in ipairs(bounds) do line[#line + 1] = bound.name end
    if call('HSETNX', terms, id, table.concat(line, ' ')) == 0 then return again() end
    call('ZADD', held, now + ttl, id)
    for _, bound in ipairs(bounds) do
        bound.reserved[1], bound.reserved[2] = bound.reserved[1] + nano, bound.reserved[2] + tokens
    end
elseif call('HEXISTS', terms, id) == 1 then
    return again()
end
if verb == 'admit' then
    for _, w in ipairs(windows) do let_through(w) end
end
return granted()
