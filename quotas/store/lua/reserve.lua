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
  local total, own = 0, ''
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local lives = fields[i] == owner
    if lives then
      own = fields[i + 1]
    else
      local lease = redis.call('ZSCORE', KEYS[3], fields[i])
      lives = lease and tonumber(lease) > now_ms
    end
    if lives then
      total = total + tonumber(string.match(fields[i + 1], '^%d+'))
    else
      redis.call('HDEL', key, fields[i])
    end
  end
  return total, own
end

-- First look at everything. A bucket is written anew when units are taken, when the limit's figures
-- changed, and when the clock stepped back; else what flowed in is found again from the old value.
local entries = cmsgpack.unpack(ARGV[6])
local levels, owns, anew = {}, {}, {}
local binding, longest = -1, 0
for n = 1, #KEYS - 3 do
  local at = (n - 1) * WIDTH
  local amount, capacity, per_minute = entries[at + 3], entries[at + 4], entries[at + 5]
  local level, wait = capacity * TICKS, 0
  if entries[at + 2] == 'bucket' then
    if found[n + 3] then
      local old_level, at_ms, old_capacity, old_per_minute = struct.unpack(BUCKET, found[n + 3])
      anew[n] = at_ms > now_ms or old_capacity ~= capacity or old_per_minute ~= per_minute
      level = math.min(level, flowed(old_level, at_ms, old_capacity, old_per_minute))
    end
    if amount > 0 and level < amount * TICKS then
      if amount > capacity or per_minute <= 0 then
        wait = -1
      else
        wait = ceil_div(amount * TICKS - level, per_minute)
      end
    end
  else
    level, owns[n] = held(KEYS[n + 3])
    if amount > 0 and level + amount > capacity then
      wait = amount > capacity and -1 or tonumber(ARGV[5])
    end
  end
  levels[n] = level
  if wait ~= 0 and longest ~= -1 and (wait == -1 or wait > longest) then
    binding, longest = n - 1, wait
  end
end

-- Then take all of it, or nothing.
local admitted = binding < 0
local tokens, holds = {}, false -- of entries that hold: index of the entry -> the field's token
local reply = {now_ms, admitted and 1 or 0, epoch, binding, longest}
for n = 1, #KEYS - 3 do
  local at, key, level = (n - 1) * WIDTH, KEYS[n + 3], levels[n]
  local amount, capacity, per_minute = entries[at + 3], entries[at + 4], entries[at + 5]
  if entries[at + 2] == 'bucket' then
    if admitted and amount > 0 then
      level = level - amount * TICKS
      anew[n] = true
    end
    local full_in_ms = reset_ms(level, capacity, per_minute)
    if anew[n] then write(key, level, capacity, per_minute, full_in_ms) end
    reply[2 * n + 4], reply[2 * n + 5] = floor_div(level, TICKS), full_in_ms
  else
    if admitted and amount > 0 then
      local count, token = string.match(owns[n], '^(%d+) (%d+)$')
      token = token or int(now_us)
      redis.call('HSET', key, owner, int((count or 0) + amount) .. ' ' .. token)
      redis.call('PEXPIRE', key, ARGV[3])
      level = level + amount
      tokens[at + 1], holds = token, true
    end
    reply[2 * n + 4], reply[2 * n + 5] = capacity - level, 0
  end
end

if holds then
  redis.call('ZADD', KEYS[3], int(now_ms + ARGV[4]), owner)
  redis.call('PEXPIRE', KEYS[3], math.max(ARGV[3], 2 * ARGV[4]))
end
if admitted then
  redis.call('SET', KEYS[2], cmsgpack.pack({
    state = 'held', epoch = epoch, owner = owner, entries = ARGV[6], tokens = tokens, reply = reply,
  }), 'PX', ARGV[3])
end
return reply
