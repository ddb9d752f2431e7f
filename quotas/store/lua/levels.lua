-- Arithmetic and keys shared by the scripts: put before each of them when it is loaded.
--
-- The same integers as quotas/buckets.py (the reference): levels in ticks, 60,000 a unit. Doubles
-- are exact below 2^53, and quotients go through fmod, which never rounds. Time is the server's.
--
-- Keys of one tag share a hash slot. KEYS[1] is the epoch, KEYS[2] the reservation, KEYS[3] the
-- leases (owner -> ms it lives to). A bucket is four doubles, big-endian: level, at_ms, capacity,
-- per_minute; absent is full. Holds are a hash, owner -> "count token"; the token names the life of
-- the field, so that a hold that was pruned with its owner's lease is never subtracted from a later
-- one.
--
-- Entries are one flat list, WIDTH fields a charge: key, algorithm, amount, capacity, per_minute,
-- dimension. They come back out of stored reservations, so settle, release and expire touch keys
-- that only the reservation names: same tag, same slot.

local TICKS = 60000
local MARGIN_MS = 60000
local LONGEST_MS = 2 ^ 40 -- 34 years, and still an integer when Redis prints it
local BUCKET = '>dddd'
local WIDTH = 6

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

local function flowed(level, at_ms, capacity, per_minute)
  local elapsed = now_ms - at_ms
  if elapsed <= 0 then return level end
  return math.min(capacity * TICKS, level + elapsed * per_minute)
end

-- Until the bucket is full again; 0 when it is, or when nothing ever flows in.
local function reset_ms(level, capacity, per_minute)
  local missing = capacity * TICKS - level
  if missing <= 0 or per_minute <= 0 then return 0 end
  return ceil_div(missing, per_minute)
end

local function write(key, level, capacity, per_minute, full_in_ms)
  local value = struct.pack(BUCKET, level, now_ms, capacity, per_minute)
  if per_minute > 0 then
    redis.call('SET', key, value, 'PX', math.min(LONGEST_MS, full_in_ms + MARGIN_MS))
  else
    redis.call('SET', key, value)
  end
end

-- Give back units (take, when negative), under the figures the bucket has; absent: the entry's.
local function add(key, units, capacity, per_minute)
  local raw = redis.call('GET', key)
  local level = capacity * TICKS
  if raw then
    local at_ms
    level, at_ms, capacity, per_minute = struct.unpack(BUCKET, raw)
    level = flowed(level, at_ms, capacity, per_minute)
  end
  level = math.min(capacity * TICKS, level + units * TICKS)
  write(key, level, capacity, per_minute, reset_ms(level, capacity, per_minute))
end

-- Let go of the holds of a reservation, where they still count.
local function free(reservation, entries)
  for index, token in pairs(reservation.tokens) do
    local key, amount = entries[index], entries[index + 2]
    local held = redis.call('HGET', key, reservation.owner)
    local count, named = string.match(held or '', '^(%d+) (%d+)$')
    if named == token then
      if tonumber(count) > amount then
        local left = int(tonumber(count) - amount)
        redis.call('HSET', key, reservation.owner, left .. ' ' .. token)
      else
        redis.call('HDEL', key, reservation.owner)
      end
    end
  end
end

-- What is left of an ended reservation: enough to answer a repeated reserve.
local function mark(state, reply, keep_ms)
  redis.call('SET', KEYS[2], cmsgpack.pack({state = state, reply = reply}), 'PX', keep_ms)
end
