-- Arithmetic and keys shared by the steps: put before them, whether they are loaded as a library of
-- functions or each as a script of its own (quotas/store/scripts.py).
--
-- The same integers as quotas/buckets.py and quotas/tallies.py (the reference): levels of buckets in
-- ticks, 60,000 a unit. Doubles are exact below 2^53, and so is a % b of two such integers. Time is
-- the server's.
--
-- Keys of one tag share a hash slot. The first key given is the epoch, the second the reservation, the
-- third the leases (a map, owner -> ms it lives to). Each scope is a hash, one field a level
-- ("window:dimension") and "~", the ms the hash lives to:
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
-- A reservation is [state, epoch, owner, shadowed rows, levels shown, spec, amounts, how]; an ended one
-- keeps the first five, so that a repeated reserve is answered as the first, and instead of its spec
-- what it took of money that was not seeded yet, or false.
--
-- A spec is a table in columns, nine packed values, its rows ordered by scope: scopes, the last row
-- of each, fields, algorithms, capacities, per_minutes, dimensions, shadows (0 or 1), and five values
-- a quota (id, begins_ms, ends_ms, next id, next ends_ms). It is stored with the reservation, so that
-- settle, release and expire move the very levels that were charged, whatever is configured by then.
-- Amounts are integers of eight bytes, one a row.
--
-- What outlives a call here (specs read, the server's id, tables that are filled again) is a copy of
-- what is in keys or in the server, and is lost without loss.

local TICKS = 60000
local MARGIN_MS = 60000
local SLACK_MS = 3600000
local DAY_MS = 86400000
local LONGEST_MS = 2 ^ 40 -- 34 years, and still an integer when Redis prints it
local FOREVER_MS = 9999999999999
local GUESS_MS = 1000 -- nobody knows when another request ends
local BUCKET = '>dddd'
local LIFE_MS = 10 -- how long the server's id is believed: a failover there and back takes longer
local KEPT = 4096

-- Not there yet when a library is loaded.
local call, pack, unpacked, binary, numbers
local now_us, now_ms, prefix

-- A step's time, and where its keys are.
local function begin(epoch_key)
  if not call then
    call, pack, unpacked = redis.call, cmsgpack.pack, cmsgpack.unpack
    binary, numbers = struct.pack, struct.unpack
  end
  local time = call('TIME')
  now_us = time[1] * 1000000 + time[2]
  now_ms = (now_us - now_us % 1000) / 1000
  prefix = string.sub(epoch_key, 1, -6) -- without "epoch"
end

local function int(number)
  return string.format('%.0f', number)
end

local life_id, life_at_ms

local function life()
  if not life_id or now_ms < life_at_ms or now_ms > life_at_ms + LIFE_MS then
    life_id = string.match(call('INFO', 'replication'), 'master_replid:(%x+)') or '-'
    life_at_ms = now_ms
  end
  return life_id
end

-- The epoch as found, or nil where there is none or the server is not the one that began it.
local function known_epoch(found)
  if not found then return nil end
  local id = life()
  if string.sub(found, 1, #id) ~= id then return nil end
  return string.sub(found, #id + 2)
end

local function the_epoch(found, nonce)
  local epoch = known_epoch(found)
  if epoch then return epoch end
  epoch = nonce .. '-' .. int(now_us)
  call('SET', prefix .. 'epoch', life() .. ' ' .. epoch)
  return epoch
end

local specs, specs_kept = {}, 0

-- The columns, and the formats of a list of amounts and of levels as they are shown.
local function spec_of(packed)
  local spec = specs[packed]
  if not spec then
    spec = {unpacked(packed)}
    spec[10] = '<' .. string.rep('i8', #spec[3])
    spec[11] = '<' .. string.rep('i8i8', #spec[3])
    if specs_kept >= KEPT then specs, specs_kept = {}, 0 end
    specs[packed], specs_kept = spec, specs_kept + 1
  end
  return spec
end

local function amounts_of(spec, packed)
  return {numbers(spec[10], packed)}
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
  local rest = missing % per_minute
  if rest == 0 then return missing / per_minute end
  return (missing - rest) / per_minute + 1
end

-- How long a scope's hash must outlive a bucket of this level.
local function bucket_keep_ms(full_in_ms, per_minute)
  return per_minute > 0 and full_in_ms + MARGIN_MS or LONGEST_MS
end

-- A quota's tally, of this epoch: what others held before it is taken as used, and money starts
-- anew, unseeded.
local function tally_of(raw, epoch, money)
  if not raw then return {'', 0, 0, '', 0, 0, epoch, 0} end
  local tally = unpacked(raw)
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
  local purse = raw and unpacked(raw)
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

local leases_read, leases_kept = {}, 0

-- Owner -> ms it lives to; never changed, but written anew.
local function leases_of(raw)
  if not raw then return {} end
  local leases = leases_read[raw]
  if not leases then
    leases = unpacked(raw)
    if leases_kept >= KEPT then leases_read, leases_kept = {}, 0 end
    leases_read[raw], leases_kept = leases, leases_kept + 1
  end
  return leases
end

-- This owner's lease, prolonged when half of it is gone; the process renews it by itself.
local function keep_lease(leases, owner, lease_ms, keep_ms)
  if (leases[owner] or 0) >= now_ms + lease_ms / 2 then return end
  local kept = {}
  for each, lives_to in pairs(leases) do kept[each] = lives_to end
  kept[owner] = now_ms + lease_ms
  call('SET', prefix .. 'leases', pack(kept), 'PX', keep_ms)
end

-- Holds of living owners (a list), how many, and where this owner's stand in the list or nil.
local function living(raw, epoch, owner, leases)
  local found = raw and unpacked(raw)
  if not found or found[1] ~= epoch then return {epoch}, 0, nil end
  local total, own, count = 0, nil, #found
  for i = 2, count, 3 do
    if found[i] == owner then
      own = i
    elseif (leases[found[i]] or 0) <= now_ms then
      found[i + 1] = false
    end
    total = total + (found[i + 1] or 0)
  end
  for i = count - 2, 2, -3 do
    if not found[i + 1] then
      for _ = 1, 3 do table.remove(found, i) end
      if own and own > i then own = own - 3 end
    end
  end
  return found, total, own
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

-- Fields of a scope on their way: name, value, name, value, ... `count` of them are of this scope.
local fields = {}

local function put(count, name, value)
  fields[count + 1], fields[count + 2] = name, value
  return count + 2
end

-- Write them, and let the scope's hash live long enough. `lives_to` is its "~" as read.
local function write(key, count, keep_ms, lives_to)
  if count == 0 then return end
  if keep_ms > LONGEST_MS then keep_ms = LONGEST_MS end
  if lives_to and tonumber(lives_to) >= now_ms + keep_ms then
    call('HSET', key, unpack(fields, 1, count))
  else
    keep_ms = keep_ms + SLACK_MS
    call('HSET', key, '~', int(now_ms + keep_ms), unpack(fields, 1, count))
    call('PEXPIRE', key, int(keep_ms))
  end
end

-- What is left of an ended reservation.
local function mark(key, state, keep_ms, epoch, shadowed, shown, early)
  call('SET', key,
    pack(state, epoch or '', '', shadowed or false, shown or false, early or false),
    'PX', keep_ms)
end
