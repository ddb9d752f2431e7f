-- Levels become what SQL says, once an epoch.
-- Keys: epoch. Arguments: nonce, epoch meant, seeds (flat: scope, field, "balance" or "quota", period
-- id, level), counted ids, counted_ms. Reply: {now_ms, 1, or 0 when the tag is of another epoch}.
--
-- A level that is not seeded yet counts from zero what was settled in this epoch. That is added to
-- the seed, less what the counted ids took: SQL has it.

-- What one level becomes, and whether it is money; nil when it was seeded before.
local function seeded(raw, epoch, kind, field, id, level)
  local money = string.find(field, ':money', 1, true) ~= nil
  if kind == 'balance' then
    local purse = purse_of(raw, epoch)
    if purse[4] == 1 then return nil end
    purse[1], purse[4] = purse[1] + level, 1
    return purse, money
  end
  local tally = tally_of(raw, epoch, money)
  if tally[8] == 1 then return nil end
  local slot = begin_slot(tally, id)
  tally[slot + 1] = money and tally[slot + 1] + level or level
  tally[8] = 1
  return tally, money
end

-- Of an open reservation that SQL has counted, the rates are still to be settled, the money is not.
local function forget_money(fresh, packed, counts, how, epoch)
  local spec = spec_of(packed)
  local reserved = amounts_of(spec, counts)
  local scopes, ends, names = unpack(spec, 1, 3)
  local from, money = 1, {}
  for s = 1, #scopes do
    for n = from, ends[s] do
      money[n] = 0
      if fresh[scopes[s] .. '\n' .. names[n]] then money[n], how[n] = how[n], 0 end
    end
    from = ends[s] + 1
  end
  move(spec, reserved, zeros(#reserved), money, epoch)
end

-- Of one that ended before the seed, what it took goes back: SQL has counted it.
local function give_back(fresh, early, epoch)
  for i = 1, #early, 4 do
    local scope, field, id, amount = early[i], early[i + 1], early[i + 2], early[i + 3]
    if fresh[scope .. '\n' .. field] then
      local key = prefix .. 's:' .. scope
      local got = call('HMGET', key, '~', field)
      local value
      if id == '' then
        value = purse_of(got[2], epoch)
        value[1] = value[1] + amount
      else
        value = tally_of(got[2], epoch, true)
        local slot = begin_slot(value, id)
        value[slot + 1] = value[slot + 1] - amount
      end
      write(key, put(0, field, pack(value)), LONGEST_MS, got[1])
    end
  end
end

local function seed(keys, args)
  begin(keys[1])
  local epoch = the_epoch(call('GET', keys[1]), args[1])
  if epoch ~= args[2] then return {now_ms, 0} end
  local seeds, counted = unpacked(args[3]), unpacked(args[4])
  local fresh = {} -- levels of money that are seeded now, not before: "scope\nfield" -> true
  for i = 1, #seeds, 5 do
    local scope, field = seeds[i], seeds[i + 1]
    local key = prefix .. 's:' .. scope
    local got = call('HMGET', key, '~', field)
    local value, money = seeded(got[2], epoch, seeds[i + 2], field, seeds[i + 3], seeds[i + 4])
    if value then
      if money then fresh[scope .. '\n' .. field] = true end
      write(key, put(0, field, pack(value)), LONGEST_MS, got[1])
    end
  end
  if not next(fresh) then return {now_ms, 1} end

  for _, id in ipairs(counted) do
    local key = prefix .. 'r:' .. id
    local raw = call('GET', key)
    local state, held_epoch, owner, shadowed, shows, packed, counts, how
    if raw then
      state, held_epoch, owner, shadowed, shows, packed, counts, how = unpacked(raw)
    end
    local open = state == 'held' or state == 'expired'
    if not raw or (open and held_epoch ~= epoch) then
      mark(key, 'counted', args[5], held_epoch or epoch, shadowed, shows)
    elseif open then
      forget_money(fresh, packed, counts, how, epoch)
      call('SET', key,
        pack(state, held_epoch, owner, shadowed, shows, packed, counts, how), 'KEEPTTL')
    elseif state == 'settled' and held_epoch == epoch and packed then
      give_back(fresh, packed, epoch) -- a mark keeps it there
      mark(key, 'settled', args[5], epoch, shadowed, shows)
    end
  end
  return {now_ms, 1}
end
