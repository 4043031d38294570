-- All counters of one tenant, on the clock of this server. See `counters.rs` for what is promised.
--
-- KEYS[1]  the root of the tenant's keys, with its id as the hash tag
-- ARGV     verb, id, ttl_ms, nano_usd, tokens, windows, bounds,
--          then for each window: name, limit, span_ms, amount, settles
--          then for each bound: key, limit of nano_usd, limit of tokens, keep_ms, version, nano_usd, tokens of the ledger
--          `-` stands for none
local root = KEYS[1]
local held, terms = root .. ':held', root .. ':terms'

-- With 0 added, since the negative of nothing is written as `-0`, which Redis takes for no number.
local function text(number) return string.format('%.0f', number + 0) end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function add(key, field, amount)
    if redis.call('HINCRBY', key, field, text(amount)) < 0 then redis.call('HSET', key, field, '0') end
end

-- Gives a reservation up. With `tokens`, its windows learn what it used; when it was given up by nobody, what its holder may have
-- written to the ledger is not known here, and the bounds are to be asked for anew.
local function release(id, tokens, forsaken)
    local line = redis.call('HGET', terms, id)
    if not line then return end
    redis.call('HDEL', terms, id)
    redis.call('ZREM', held, id)
    local parts = {}
    for part in string.gmatch(line, '%S+') do parts[#parts + 1] = part end
    local nano, reserved, windows = tonumber(parts[1]), tonumber(parts[2]), tonumber(parts[3])
    for i = 4, 3 + 2 * windows, 2 do
        local amounts, slot = root .. ':amounts:' .. parts[i], parts[i + 1]
        if tokens and redis.call('HEXISTS', amounts, slot) == 1 then
            add(amounts, slot, tokens - reserved)
            add(amounts, 'sum', tokens - reserved)
        end
    end
    for i = 4 + 2 * windows, #parts do
        local key = root .. ':spent:' .. parts[i]
        if redis.call('EXISTS', key) == 1 then
            add(key, 'reserved_nano', -nano)
            add(key, 'reserved_tokens', -reserved)
            if forsaken then redis.call('HSET', key, 'stale', '1') end
        end
    end
end

-- A few at a time, so that no call pays for all.
local function expire()
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', now, 'LIMIT', 0, 32)) do
        if redis.call('HEXISTS', terms, id) == 1 then release(id, nil, true) else redis.call('ZREM', held, id) end
    end
end

-- The newer word of the ledger holds.
local function learn(key, version, nano, tokens)
    local known = redis.call('HGET', key, 'version')
    if not known or tonumber(known) <= tonumber(version) then
        redis.call('HSET', key, 'version', version, 'nano', nano, 'tokens', tokens)
        redis.call('HDEL', key, 'stale')
    end
end

-- Whether the ledger's word is known, then spent nano_usd and tokens, then those reserved.
local function standing(key)
    local s = redis.call('HMGET', key, 'version', 'nano', 'tokens', 'reserved_nano', 'reserved_tokens', 'stale')
    return s[1] and not s[6], tonumber(s[2] or 0), tonumber(s[3] or 0), tonumber(s[4] or 0), tonumber(s[5] or 0)
end

-- Takes what is too old out of a window, and tells its sum.
local function slide(name, span)
    local times, amounts = root .. ':times:' .. name, root .. ':amounts:' .. name
    -- The clock was set back: what seems to come from the future counts as of now.
    local ahead = redis.call('ZRANGEBYSCORE', times, '(' .. now, '+inf')
    if #ahead > 0 then
        local moved = 0
        for _, slot in ipairs(ahead) do
            moved = moved + tonumber(redis.call('HGET', amounts, slot) or 0)
            redis.call('ZREM', times, slot)
            redis.call('HDEL', amounts, slot)
        end
        redis.call('ZADD', times, now, text(now))
        redis.call('HINCRBY', amounts, text(now), text(moved))
    end
    local newest = redis.call('ZREVRANGE', times, 0, 0)[1]
    if not newest then return 0 end
    if tonumber(newest) <= now - span then
        redis.call('DEL', times, amounts)
        return 0
    end
    while true do
        local old = redis.call('ZRANGEBYSCORE', times, '-inf', text(now - span), 'LIMIT', 0, 500)
        if #old == 0 then break end
        local gone = 0
        for _, amount in ipairs(redis.call('HMGET', amounts, unpack(old))) do gone = gone + tonumber(amount or 0) end
        redis.call('ZREM', times, unpack(old))
        redis.call('HDEL', amounts, unpack(old))
        redis.call('HINCRBY', amounts, 'sum', text(-gone))
    end
    return tonumber(redis.call('HGET', amounts, 'sum') or 0)
end

-- How long until so much has left a window. Looks at its thousand oldest moments; then it is at least so long.
local function wait(name, span, excess)
    local times, amounts = root .. ':times:' .. name, root .. ':amounts:' .. name
    local freed, last = 0, now
    for start = 0, 900, 100 do
        local slots = redis.call('ZRANGE', times, start, start + 99)
        if #slots == 0 then break end
        for i, amount in ipairs(redis.call('HMGET', amounts, unpack(slots))) do
            freed, last = freed + tonumber(amount or 0), tonumber(slots[i])
            if freed >= excess then return last + span - now end
        end
    end
    return last + span - now
end

local verb, id, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local nano, tokens = tonumber(ARGV[4]), ARGV[5] ~= '-' and tonumber(ARGV[5]) or nil
local windows, bounds, at = {}, {}, 8
for i = 1, tonumber(ARGV[6]) do
    windows[i] = { name = ARGV[at], limit = tonumber(ARGV[at + 1]), span = tonumber(ARGV[at + 2]),
        amount = tonumber(ARGV[at + 3]), settles = ARGV[at + 4] == '1' }
    at = at + 5
end
for i = 1, tonumber(ARGV[7]) do
    bounds[i] = { name = ARGV[at], key = root .. ':spent:' .. ARGV[at], nano = tonumber(ARGV[at + 1]),
        tokens = tonumber(ARGV[at + 2]), keep = ARGV[at + 3] }
    if ARGV[at + 4] ~= '-' then learn(bounds[i].key, ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]) end
    at = at + 7
end

local function reserve(line)
    for _, bound in ipairs(bounds) do
        redis.call('HINCRBY', bound.key, 'reserved_nano', text(nano))
        redis.call('HINCRBY', bound.key, 'reserved_tokens', text(tokens))
    end
    redis.call('HSET', terms, id, line)
    redis.call('ZADD', held, now + ttl, id)
end

local function granted()
    local answer = { 'granted', now }
    for _, bound in ipairs(bounds) do
        redis.call('PEXPIRE', bound.key, bound.keep)
        local _, n, t, rn, rt = standing(bound.key)
        for _, number in ipairs({ n, t, rn, rt }) do answer[#answer + 1] = number end
    end
    return answer
end

if verb == 'settle' then release(id, tokens, false) end
expire()
if verb == 'settle' then return granted() end

local unknown = { 'unknown', now }
for i, bound in ipairs(bounds) do
    if not standing(bound.key) then unknown[#unknown + 1] = i - 1 end
end
if #unknown > 2 then return unknown end

if redis.call('HEXISTS', terms, id) == 1 then
    redis.call('ZADD', held, now + ttl, id)
    return granted()
end

local line = { text(nano), text(tokens), '0' }
if verb == 'admit' then
    local longest, full = -1, nil
    for i, window in ipairs(windows) do
        local excess = slide(window.name, window.span) + math.min(window.amount, window.limit) - window.limit
        if excess > 0 then
            local pause = wait(window.name, window.span, excess)
            if pause > longest then longest, full = pause, i end
        end
    end
    if full then return { 'full', now, full - 1, math.max(longest, 1) } end
    for i, bound in ipairs(bounds) do
        local _, n, t, rn, rt = standing(bound.key)
        if (bound.nano and n + rn + nano > bound.nano) or (bound.tokens and t + rt + tokens > bound.tokens) then
            return { 'spent', now, i - 1, n, t, rn, rt }
        end
    end
    local settling = 0
    for _, window in ipairs(windows) do
        local times, amounts = root .. ':times:' .. window.name, root .. ':amounts:' .. window.name
        local slot = text(now)
        redis.call('ZADD', times, slot, slot)
        redis.call('HINCRBY', amounts, slot, text(window.amount))
        redis.call('HINCRBY', amounts, 'sum', text(window.amount))
        redis.call('PEXPIRE', times, window.span + 1000)
        redis.call('PEXPIRE', amounts, window.span + 1000)
        if window.settles then
            settling = settling + 1
            line[#line + 1] = window.name
            line[#line + 1] = slot
        end
    end
    line[3] = text(settling)
end
if #bounds > 0 or line[3] ~= '0' then
    for _, bound in ipairs(bounds) do line[#line + 1] = bound.name end
    reserve(table.concat(line, ' '))
end
return granted()
