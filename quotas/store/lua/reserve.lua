-- All charges or none, in one step; a second call with the id returns the first verdict.
-- KEYS: epoch, reservation, leases, then one a charge, in order.
-- ARGV: nonce, owner, ttl_ms, lease_ms, concurrency_retry_ms, entries (MessagePack).
-- Reply: {now_ms, 1 | 0 | -1, epoch, binding, retry_after_ms, remaining, reset_ms, ...};
-- -1: the id was ended before it was reserved. A refusal leaves nothing behind.

local found = redis.call('MGET', unpack(KEYS))
local epoch = the_epoch(found[1], ARGV[1])
local owner = ARGV[2]

if found[2] then
  local reply = cmsgpack.unpack(found[2]).reply
  if not reply then return {now_ms, -1} end
  reply[1] = now_ms
  return reply
end

-- Holds of live owners; fields whose owner's lease ran out are pruned.
local function held(key)
  local total, own = 0, false
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local lease = redis.call('ZSCORE', KEYS[3], fields[i])
    if fields[i] == owner then own = fields[i + 1] end
    if fields[i] == owner or (lease and tonumber(lease) > now_ms) then
      total = total + tonumber(string.match(fields[i + 1], '^%d+'))
    else
      redis.call('HDEL', key, fields[i])
    end
  end
  return total, own
end

local entries = cmsgpack.unpack(ARGV[6])
-- A bucket is written anew when units are taken, when the limit's figures changed, and when the clock
-- stepped back; else what flowed in is found again from the old value.
local levels, owns, anew = {}, {}, {}
local binding, longest = -1, 0
for i, entry in ipairs(entries) do
  local key, amount, capacity, per_minute = entry[1], entry[3], entry[4], entry[5]
  local wait = 0
  if entry[2] == 'bucket' then
    local level = capacity * TICKS
    if found[i + 3] then
      local at_ms, old_capacity, old_per_minute
      level, at_ms, old_capacity, old_per_minute = parse(found[i + 3])
      anew[i] = at_ms > now_ms or old_capacity ~= capacity or old_per_minute ~= per_minute
      level = flowed(level, at_ms, old_capacity, old_per_minute)
      level = math.min(capacity * TICKS, level)
    end
    levels[i] = level
    if amount > 0 and level < amount * TICKS then
      if amount > capacity or per_minute <= 0 then
        wait = -1
      else
        wait = ceil_div(amount * TICKS - level, per_minute)
      end
    end
  else
    levels[i], owns[i] = held(key)
    if amount > 0 and levels[i] + amount > capacity then
      wait = amount > capacity and -1 or tonumber(ARGV[5])
    end
  end
  if wait ~= 0 and longest ~= -1 and (wait == -1 or wait > longest) then
    binding, longest = i - 1, wait
  end
end

local admitted = binding < 0
local tokens = {}
local reply = {now_ms, admitted and 1 or 0, epoch, binding, longest}
for i, entry in ipairs(entries) do
  local key, amount, capacity, per_minute = entry[1], entry[3], entry[4], entry[5]
  local level = levels[i]
  tokens[i] = ''
  if entry[2] == 'bucket' then
    if admitted and amount > 0 then
      level = level - amount * TICKS
      anew[i] = true
    end
    if anew[i] then write(key, level, capacity, per_minute) end
    local missing = capacity * TICKS - level
    reply[#reply + 1] = floor_div(level, TICKS)
    reply[#reply + 1] = (per_minute > 0 and missing > 0) and ceil_div(missing, per_minute) or 0
  else
    if admitted and amount > 0 then
      local count, token = string.match(owns[i] or '', '^(%d+) (%d+)$')
      tokens[i] = token or int(now_us)
      redis.call('HSET', key, owner, int((tonumber(count) or 0) + amount) .. ' ' .. tokens[i])
      redis.call('PEXPIRE', key, ARGV[3])
      redis.call('ZADD', KEYS[3], int(now_ms + ARGV[4]), owner)
      redis.call('PEXPIRE', KEYS[3], int(math.max(ARGV[3], 2 * ARGV[4])))
      level = level + amount
    end
    reply[#reply + 1] = capacity - level
    reply[#reply + 1] = 0
  end
end

if admitted then
  redis.call('SET', KEYS[2], cmsgpack.pack({
    state = 'held', epoch = epoch, owner = owner, blob = ARGV[6], tokens = tokens, reply = reply,
  }), 'PX', ARGV[3])
end
return reply
