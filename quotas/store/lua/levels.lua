-- Arithmetic and keys shared by the steps: put before them, whether they are loaded as a library of
-- functions or each as a script of its own (quotas/store/steps.py).
--
-- The same integers as quotas/buckets.py and quotas/tallies.py (the reference): levels of buckets in
-- ticks, 60,000 a unit. Doubles are exact below 2^53, and so is a % b of two such integers. Time is
-- the server's.
--
-- Keys of one tag share a hash slot. The first key given is the epoch, the second the reservation, the
-- third the leases; those of scopes (lua/scopes.lua) follow.
--
-- The epoch names one life of the data. It is kept with the server's replication id, which changes
-- with every restart and failover: another id, another epoch.
--
-- Leases: owner -> {ms it lives to, number}. Holds are counted under the number, which names one life
-- of the owner's lease: who was pruned comes back under another, so that a hold that was pruned is
-- never subtracted from a later one.
--
-- A spec is a table in columns, nine packed values, its rows ordered by scope: scopes, the last row
-- of each, fields, algorithms, capacities, per_minutes, dimensions, shadows (0 or 1), and five values
-- a quota (id, begins_ms, ends_ms, next id, next ends_ms). It is stored with the reservation, so that
-- settle, release and expire move the very levels that were charged, whatever is configured by then.
-- Amounts are integers of eight bytes, one a row.
--
-- A reservation is a record: state, whether levels were ever shown, epoch, shadowed rows, rows that
-- no ending moves, the number its holds are under, the levels shown, spec, amounts, periods charged. An
-- ended one keeps the state, the epoch and what was shown, so that a repeated reserve is answered as the
-- first, and instead of its spec what it took of money that was not seeded yet.
--
-- What outlives a call here (specs read, the server's id, tables that are filled again) is a copy of
-- what is in keys or in the server, and is lost without loss. A field of a table costs the server more
-- than anything else here: what is read twice is kept in a local.

local TICKS = 60000
local MARGIN_MS = 60000
local SLACK_MS = 3600000
local DAY_MS = 86400000
local LONGEST_MS = 2 ^ 40 -- 34 years, and still an integer when Redis prints it
local FOREVER_MS = 9999999999999
local GUESS_MS = 1000 -- nobody knows when another request ends
local LEASE_MS, LEASES_KEPT_MS = 30000, 86400000 -- as quotas/reservation.py has them
local LIFE_MS = 10 -- how long the server's id is believed: a failover there and back takes longer
local KEPT = 4096
local HELD, EXPIRED, SETTLED, RELEASED, TOMBSTONE, COUNTED = 1, 2, 3, 4, 5, 6
local RECORD = '<BBsssdIc0Ic0Ic0Ic0'

-- Not there yet when a library is loaded.
local call, pack, unpacked, binary, numbers, spread
local now_us, now_ms, prefix

-- A step's time, and where its keys are.
local function begin(epoch_key)
  if not call then
    call, pack, unpacked = redis.call, cmsgpack.pack, cmsgpack.unpack
    binary, numbers, spread = struct.pack, struct.unpack, unpack
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

local epoch_read, epoch_life, epoch_of_it

-- The epoch as found, or nil where there is none or the server is not the one that began it.
local function known_epoch(found)
  if not found then return nil end
  local id = life()
  if found ~= epoch_read or id ~= epoch_life then
    if string.sub(found, 1, #id) ~= id then return nil end
    epoch_read, epoch_life, epoch_of_it = found, id, string.sub(found, #id + 2)
  end
  return epoch_of_it
end

local function the_epoch(found, nonce)
  local epoch = known_epoch(found)
  if epoch then return epoch end
  epoch = nonce .. '-' .. int(now_us)
  call('SET', prefix .. 'epoch', life() .. ' ' .. epoch)
  return epoch
end

local specs, specs_kept = {}, 0

-- The columns by name, with formats, and what scopes.lua finds out of each scope.
local function spec_of(packed)
  local spec = specs[packed]
  if spec then return spec end
  spec = {full = {}, begins = {}, quotas = 0, judged = {}, moved = {}, blank = {}}
  spec.scopes, spec.ends, spec.names, spec.kinds, spec.capacities, spec.rates, spec.dims,
    spec.shadows, spec.periods = unpacked(packed)
  for n, kind in ipairs(spec.kinds) do
    spec.full[n] = spec.capacities[n] * TICKS
    if kind == 'quota' then
      spec.begins[n] = 5 * spec.quotas + 1 -- where its periods stand
      spec.quotas = spec.quotas + 1
    end
  end
  for s = 1, #spec.scopes do spec.judged[s], spec.moved[s] = {}, {} end
  spec.amounts = '<' .. string.rep('i8', #spec.names)
  spec.levels = '<' .. string.rep('i8i8', #spec.names)
  spec.ids = '<' .. string.rep('s', spec.quotas)
  if specs_kept >= KEPT then specs, specs_kept = {}, 0 end
  specs[packed], specs_kept = spec, specs_kept + 1
  return spec
end

-- Until the bucket is full again; 0 when it is, or when nothing ever flows in.
local function reset_ms(missing, per_minute)
  if missing <= 0 or per_minute <= 0 then return 0 end
  local rest = missing % per_minute
  if rest == 0 then return missing / per_minute end
  return (missing - rest) / per_minute + 1
end

-- The id and end of the period that covers the server's time, of the five values from `at`; or nil.
local function covering(periods, at)
  if now_ms < periods[at + 1] then return nil end
  if now_ms < periods[at + 2] then return periods[at], periods[at + 2] end
  if now_ms < periods[at + 4] then return periods[at + 3], periods[at + 4] end
  return nil
end

-- Where a period's id stands from `at` in a scope's values (used and held follow it), or nil.
local function slot_of(values, at, id)
  if values[at] == id then return at end
  if values[at + 3] == id then return at + 3 end
  return nil
end

-- The same, begun where there is none: the older of the two makes room.
local function begin_slot(values, at, id)
  local slot = slot_of(values, at, id)
  if slot then return slot end
  values[at + 3], values[at + 4], values[at + 5] = values[at], values[at + 1], values[at + 2]
  values[at], values[at + 1], values[at + 2] = id, 0, 0
  return at
end

local leases_read, leases_kept = {}, 0
local NO_LEASES = {owners = {}, lives = {}}

-- By owner as stored, and number -> ms it lives to; never changed, but written anew.
local function leases_of(raw)
  if not raw then return NO_LEASES end
  local leases = leases_read[raw]
  if not leases then
    leases = {owners = unpacked(raw), lives = {}}
    for _, lease in pairs(leases.owners) do leases.lives[lease[2]] = lease[1] end
    if leases_kept >= KEPT then leases_read, leases_kept = {}, 0 end
    leases_read[raw], leases_kept = leases, leases_kept + 1
  end
  return leases
end

-- The number that an owner's holds are under: that of its lease, or else of the one it is to have.
local function number_of(leases, owner)
  local lease = leases.owners[owner]
  if lease then return lease[2] end
  local number = now_us
  for taken in pairs(leases.lives) do
    if taken >= number then number = taken + 1 end
  end
  return number
end

-- This owner's lease, prolonged when half of it is gone; the process renews it by itself. `gone` (or
-- nil): numbers that were pruned.
local function keep_lease(leases, owner, number, gone)
  if not gone and (leases.lives[number] or 0) >= now_ms + LEASE_MS / 2 then return end
  local kept = {}
  for each, lease in pairs(leases.owners) do
    if not (gone and gone[lease[2]]) then kept[each] = lease end
  end
  kept[owner] = {now_ms + LEASE_MS, number}
  call('SET', prefix .. 'leases', pack(kept), 'PX', LEASES_KEPT_MS)
end

-- What is left of an ended reservation; `shows` is nil where it was never admitted.
local function mark(key, state, keep_ms, epoch, shadowed, shows, early)
  call('SET', key,
    binary(RECORD, state, shows and 1 or 0, epoch or '', shadowed or '', '', 0,
      shows and #shows or 0, shows or '', 0, '', 0, '', early and #early or 0, early or ''),
    'PX', keep_ms)
end

-- A record's parts in order: state, epoch, shadowed, skipped, number, shows or nil, spec, amounts, ids.
local function recorded(raw)
  local state, shown, epoch, shadowed, skipped, number, shows, packed, counts, ids =
    numbers(RECORD, raw)
  return state, epoch, shadowed, skipped, number, shown == 1 and shows or nil, packed, counts, ids
end

local function record(state, epoch, shadowed, skipped, number, shows, packed, counts, ids)
  return binary(RECORD, state, 1, epoch, shadowed, skipped, number, #shows, shows, #packed, packed,
    #counts, counts, #ids, ids)
end

-- Rows named in a list such as "0 3": row -> true; nil where there is none.
local function rows_of(list)
  if list == '' then return nil end
  local rows = {}
  for row in string.gmatch(list, '%d+') do rows[tonumber(row) + 1] = true end
  return rows
end

local function list_of(rows, count)
  local list = {}
  for n = 1, count do
    if rows[n] then list[#list + 1] = int(n - 1) end
  end
  return table.concat(list, ' ')
end
