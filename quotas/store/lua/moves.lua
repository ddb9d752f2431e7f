-- Levels moved from what was reserved to what was true: shared by settle, release, expire and seed.

-- The rows that move, scope after scope; where each scope's begin, and what was read for them. Filled
-- again by every `move`.
local asked, rows, firsts, founds = {}, {}, {}, {}

-- What is taken of money that is not seeded yet is put into `early`.
local function note_early(early, scope, name, id, amount)
  if not early then return end
  local at = #early
  early[at + 1], early[at + 2], early[at + 3], early[at + 4] = scope, name, id, amount
end

-- An owner's entry under its token holds less; nil when it is not there.
local function give_holds(raw, epoch, token, amount)
  local list = raw and unpacked(raw)
  if not list or list[1] ~= epoch then return nil end
  for at = 4, #list, 3 do
    if list[at] == token then
      list[at - 1] = list[at - 1] - amount
      if list[at - 1] <= 0 then
        for _ = 1, 3 do table.remove(list, at - 2) end
      end
      return list
    end
  end
  return nil
end

-- Row by row: `reserved` units are no longer held, `actual` units are used. `how[n]` as reserve left
-- it: 0 = nothing was taken, a quota's period, a hold's token, else 1. `only` (nil = all) names the
-- algorithm to move. All is read before anything is written: a cluster that is moving the slot refuses
-- a key that it does not have any more, and what was written by then would stay.
local function move(spec, reserved, actual, how, epoch, only, early)
  local scopes, ends, names, kinds, capacities, rates, dims = unpack(spec, 1, 7)
  local from, count = 1, 0
  for s = 1, #scopes do
    firsts[s], founds[s] = count, false
    for n = from, ends[s] do
      local kind = kinds[n]
      if how[n] ~= 0 and (not only or kind == only)
        and (kind ~= 'bucket' or reserved[n] ~= actual[n]) then
        count = count + 1
        asked[count], rows[count] = names[n], n
      end
    end
    if count > firsts[s] then
      founds[s] =
        call('HMGET', prefix .. 's:' .. scopes[s], '~', unpack(asked, firsts[s] + 1, count))
    end
    from = ends[s] + 1
  end
  firsts[#scopes + 1] = count
  for s = 1, #scopes do
    local found, before = founds[s], firsts[s]
    if found then
      local filled, keep_ms = 0, 0
      for i = before + 1, firsts[s + 1] do
        local n, raw, value, lasts_ms = rows[i], found[i - before + 1], nil, 0
        local kind, was, is = kinds[n], reserved[n], actual[n]
        if kind == 'bucket' then
          -- Under the figures the bucket has; absent: full, under the row's.
          local capacity, rate = capacities[n], rates[n]
          local level = capacity * TICKS
          if raw then
            local at_ms
            level, at_ms, capacity, rate = numbers(BUCKET, raw)
            level = flowed(level, at_ms, capacity, rate)
          end
          level = math.min(capacity * TICKS, level + (was - is) * TICKS)
          value = binary(BUCKET, level, now_ms, capacity, rate)
          lasts_ms = bucket_keep_ms(reset_ms(level, capacity, rate), rate)
        elseif kind == 'concurrency' then
          local list = give_holds(raw, epoch, how[n], was)
          if list then value, lasts_ms = pack(list), DAY_MS end
        elseif kind == 'quota' then
          local money = dims[n] == 'money'
          local tally = tally_of(raw, epoch, money)
          local slot = slot_of(tally, how[n])
          if not slot and was == 0 then slot = begin_slot(tally, how[n]) end
          if slot then -- else the period is long over
            tally[slot + 1] = tally[slot + 1] + is
            tally[slot + 2] = math.max(0, tally[slot + 2] - was)
            value, lasts_ms = pack(tally), 40 * DAY_MS
            if money and tally[8] ~= 1 then note_early(early, scopes[s], names[n], how[n], is) end
          end
        else
          local purse = purse_of(raw, epoch)
          purse[1] = purse[1] - is
          purse[2] = math.max(0, purse[2] - was)
          value, lasts_ms = pack(purse), LONGEST_MS
          if purse[4] ~= 1 then note_early(early, scopes[s], names[n], '', is) end
        end
        if value then
          filled = put(filled, names[n], value)
          if lasts_ms > keep_ms then keep_ms = lasts_ms end
        end
      end
      write(prefix .. 's:' .. scopes[s], filled, keep_ms, found[1])
    end
  end
end

local function zeros(count)
  local list = {}
  for n = 1, count do list[n] = 0 end
  return list
end

-- Holds that went free when the reservation expired are not freed again.
local function without_holds(spec, how)
  for n, kind in ipairs(spec[4]) do
    if kind == 'concurrency' then how[n] = 0 end
  end
end
