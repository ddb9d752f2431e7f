-- Arithmetic and keys shared by the scripts: put before each of them when it is loaded.
--
-- The same integers as quotas/buckets.py and quotas/tallies.py (the reference): levels of buckets in
-- ticks, 60,000 a unit. Doubles are exact below 2^53, and quotients go through fmod, which never
-- rounds. Time is the server's.
--
-- Keys of one tag share a hash slot. KEYS[1] is the epoch, KEYS[2] the reservation, KEYS[3] the
-- leases (a map, owner -> ms it lives to). Each scope is a hash, one field a level ("window:dimension")
-- and "~", the ms the hash lives to:
--
--   bucket       four doubles: level, at_ms, capacity, per_minute; absent is full
--   quota        [id, used, held, id before, used, held, epoch, 1 when seeded]
--   balance      [level, held, epoch, 1 when seeded]
--   concurrency  [epoch, owner, count, token, owner, count, token, ...]; the token names the life of
--                the entry, so that a hold that was pruned with its owner's lease is never subtracted
--                from a later one
--
-- The epoch names one life of the data. It is kept with the server's replication id, which changes
-- with every restart and failover: another id, another epoch.
--
-- A spec is a table in columns, nine packed values, its rows ordered by scope: scopes, the last row
-- of each, fields, algorithms, capacities, per_minutes, dimensions, shadows (0 or 1), and five values
-- a quota (id, begins_ms, ends_ms, next id, next ends_ms). It is stored with the reservation, so that
-- settle, release and expire move the very levels that were charged, whatever is configured by then.

local TICKS = 60000
local MARGIN_MS = 60000
local SLACK_MS = 3600000
local DAY_MS = 86400000
local LONGEST_MS = 2 ^ 40 -- 34 years, and still an integer when Redis prints it
local FOREVER_MS = 9999999999999
local GUESS_MS = 1000 -- nobody knows when another request ends
local BUCKET = '>dddd'

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = (now_us - now_us % 1000) / 1000
local prefix = string.sub(KEYS[1], 1, -6) -- without "epoch"

local function int(number)
  return string.format('%.0f', number)
end

local function floor_div(a, b)
  local rest = math.fmod(a, b)
  if rest < 0 then rest = rest + b end
  return (a - rest) / b
end

local function life()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or '-'
end

-- The epoch as found, or nil where there is none or the server is not the one that began it.
local function known_epoch(found)
  if not found then return nil end
  local at = string.find(found, ' ', 1, true)
  if string.sub(found, at + 1) ~= life() then return nil end
  return string.sub(found, 1, at - 1)
end

local function the_epoch(found, nonce)
  local epoch = known_epoch(found)
  if epoch then return epoch end
  epoch = nonce .. '-' .. int(now_us)
  redis.call('SET', KEYS[1], epoch .. ' ' .. life())
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
  return -floor_div(-missing, per_minute)
end

-- How long a scope's hash must outlive a bucket of this level.
local function bucket_keep_ms(full_in_ms, per_minute)
  return per_minute > 0 and full_in_ms + MARGIN_MS or LONGEST_MS
end

-- A quota's tally, of this epoch: what others held before it is taken as used, and money starts
-- anew, unseeded.
local function tally_of(raw, epoch, money)
  if not raw then return {'', 0, 0, '', 0, 0, epoch, 0} end
  local tally = cmsgpack.unpack(raw)
  if tally[7] ~= epoch then
    if money then return {'', 0, 0, '', 0, 0, epoch, 0} end
    tally[2], tally[3] = tally[2] + tally[3], 0
    tally[5], tally[6] = tally[5] + tally[6], 0
    tally[7], tally[8] = epoch, 0
  end
  return tally
end

-- Where a period's id stands in a tally (used and held follow it), or nil.
local function slot_of(tally, id)
  if tally[1] == id then return 1 end
  if tally[4] == id then return 4 end
  return nil
end

-- The same, begun where there is none: the older of the two makes room.
local function begin_slot(tally, id)
  local slot = slot_of(tally, id)
  if slot then return slot end
  tally[4], tally[5], tally[6] = tally[1], tally[2], tally[3]
  tally[1], tally[2], tally[3] = id, 0, 0
  return 1
end

local function purse_of(raw, epoch)
  local purse = raw and cmsgpack.unpack(raw)
  if not purse or purse[3] ~= epoch then return {0, 0, epoch, 0} end
  return purse
end

-- The id and end of the period that covers the server's time, of the five values from `at`; or nil.
local function covering(periods, at)
  if now_ms < periods[at + 1] then return nil end
  if now_ms < periods[at + 2] then return periods[at], periods[at + 2] end
  if now_ms < periods[at + 4] then return periods[at + 3], periods[at + 4] end
  return nil
end

local function leases_of(raw)
  return raw and cmsgpack.unpack(raw) or {}
end

-- Holds of living owners (a new list), how many, and where this owner's stand in the list or nil.
local function living(raw, epoch, owner, leases)
  local list, total, own = {epoch}, 0, nil
  local found = raw and cmsgpack.unpack(raw)
  if found and found[1] == epoch then
    for i = 2, #found, 3 do
      local lives = found[i] == owner
      if lives then
        own = #list + 1
      else
        lives = (leases[found[i]] or 0) > now_ms
      end
      if lives then
        local at = #list
        list[at + 1], list[at + 2], list[at + 3] = found[i], found[i + 1], found[i + 2]
        total = total + found[i + 1]
      end
    end
  end
  return list, total, own
end

-- Count units of an owner's holds, under the entry's token; a new entry is named by the reservation.
local function take_holds(list, own, owner, amount, id)
  if own then
    list[own + 1] = list[own + 1] + amount
    return list[own + 2]
  end
  local at = #list
  list[at + 1], list[at + 2], list[at + 3] = owner, amount, id
  return id
end

-- This owner's lease, prolonged when half of it is gone; the process renews it by itself.
local function keep_lease(leases, owner, lease_ms, keep_ms)
  if (leases[owner] or 0) < now_ms + lease_ms / 2 then
    leases[owner] = now_ms + lease_ms
    redis.call('SET', KEYS[3], cmsgpack.pack(leases), 'PX', keep_ms)
  end
end

-- Write fields of a scope, and let its hash live long enough. `lives_to` is its "~" as read.
local function write(scope, fields, keep_ms, lives_to)
  if #fields == 0 then return end
  local key = prefix .. 's:' .. scope
  if keep_ms > LONGEST_MS then keep_ms = LONGEST_MS end
  if not lives_to or tonumber(lives_to) < now_ms + keep_ms then
    keep_ms = keep_ms + SLACK_MS
    fields[#fields + 1], fields[#fields + 2] = '~', int(now_ms + keep_ms)
    redis.call('HSET', key, unpack(fields))
    redis.call('PEXPIRE', key, int(keep_ms))
  else
    redis.call('HSET', key, unpack(fields))
  end
end

-- What is left of an ended reservation: enough to answer a repeated reserve, and what it took of
-- money that was not seeded yet.
local function mark(key, state, reply, keep_ms, epoch, early)
  redis.call('SET', key, cmsgpack.pack(state, epoch or '', '', reply or false, early or false),
    'PX', keep_ms)
end
