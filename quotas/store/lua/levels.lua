-- Arithmetic and keys shared by the scripts: put before each of them when it is loaded.
--
-- The same integers as quotas/buckets.py (the reference): levels in ticks, 60,000 a unit. Doubles
-- are exact below 2^53, and quotients go through fmod, which never rounds. Time is the server's.
--
-- Keys of one tag share a hash slot. KEYS[1] is the epoch, KEYS[2] the reservation, KEYS[3] the
-- leases (owner -> ms it lives to). A bucket is a string "level at_ms capacity per_minute"; absent
-- is full. Holds are a hash, owner -> "count token"; the token names the life of the field, so that
-- a hold that was pruned with its owner's lease is never subtracted from a later one.
-- An entry of a reservation: {key, algorithm, amount, capacity, per_minute, dimension}. Entries come
-- back out of stored reservations, so settle, release and expire touch keys that only the
-- reservation names: same tag, same slot.

local TICKS = 60000
local MARGIN_MS = 60000

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = (now_us - now_us % 1000) / 1000

local function int(number)
  return string.format('%.0f', number)
end

local function floor_div(a, b)
  local rest = math.fmod(a, b)
  if rest < 0 then rest = rest + b end
  return (a - rest) / b
end

local function ceil_div(a, b)
  return -floor_div(-a, b)
end

local function the_epoch(found, nonce)
  if found then return found end
  local epoch = nonce .. '-' .. int(now_us)
  redis.call('SET', KEYS[1], epoch)
  return epoch
end

local function parse(raw)
  local level, at, capacity, per_minute = string.match(raw, '^(%S+) (%S+) (%S+) (%S+)$')
  return tonumber(level), tonumber(at), tonumber(capacity), tonumber(per_minute)
end

local function flowed(level, at_ms, capacity, per_minute)
  local elapsed = now_ms - at_ms
  if elapsed > 0 then
    level = math.min(capacity * TICKS, level + elapsed * per_minute)
  end
  return level
end

local function write(key, level, capacity, per_minute)
  local value = int(level) .. ' ' .. int(now_ms) .. ' ' .. int(capacity) .. ' ' .. int(per_minute)
  if per_minute > 0 then
    local full_ms = ceil_div(math.max(0, capacity * TICKS - level), per_minute)
    redis.call('SET', key, value, 'PX', int(full_ms + MARGIN_MS))
  else
    redis.call('SET', key, value)
  end
end

-- Give back units (take, when negative), under the figures the bucket has; absent: the entry's.
local function add(entry, units)
  local raw = redis.call('GET', entry[1])
  local capacity, per_minute = entry[4], entry[5]
  local level = capacity * TICKS
  if raw then
    local at_ms
    level, at_ms, capacity, per_minute = parse(raw)
    level = flowed(level, at_ms, capacity, per_minute)
  end
  write(entry[1], math.min(capacity * TICKS, level + units * TICKS), capacity, per_minute)
end

-- Let go of the holds of a reservation, where they still count.
local function free(reservation)
  for index, entry in ipairs(reservation.entries) do
    local token = reservation.tokens[index]
    if token and token ~= '' then
      local held = redis.call('HGET', entry[1], reservation.owner)
      local count, named = string.match(held or '', '^(%d+) (%d+)$')
      if named == token then
        local left = tonumber(count) - entry[3]
        if left > 0 then
          redis.call('HSET', entry[1], reservation.owner, int(left) .. ' ' .. token)
        else
          redis.call('HDEL', entry[1], reservation.owner)
        end
      end
    end
  end
end

local function load(raw)
  local reservation = cmsgpack.unpack(raw)
  if reservation.blob then reservation.entries = cmsgpack.unpack(reservation.blob) end
  return reservation
end

-- What is left of an ended reservation: enough to answer a repeated reserve.
local function mark(state, reply, keep_ms)
  redis.call('SET', KEYS[2], cmsgpack.pack({state = state, reply = reply}), 'PX', keep_ms)
end
