-- Levels become what SQL says, once an epoch.
-- Keys: epoch. Arguments: nonce, epoch meant, seeds (flat: scope, field, "balance" or "quota", period
-- id, level), counted ids, counted_ms. Reply: {now_ms, 1, or 0 when the tag is of another epoch}.
--
-- A level that is not seeded yet counts from zero what was settled in this epoch. That is added to
-- the seed, less what the counted ids took: SQL has it.

-- A tally's slot of a period, begun where there is none: where its used stands.
local function used_of(tally, id)
  return begin_slot(tally, 1, id) + 1
end

-- Whether the level was not seeded before, and whether it is money.
local function sown(cell, id, level)
  local money = string.find(cell.name, ':money', 1, true) ~= nil
  if cell.kind == 'balance' then
    if cell[3] == 1 then return false, money end
    cell[1], cell[3] = cell[1] + level, 1
    return true, money
  end
  if cell[7] == 1 then return false, money end
  local used = used_of(cell, id)
  cell[used] = money and cell[used] + level or level
  cell[7] = 1
  return true, money
end

-- Rows of a spec that hold money which is seeded now.
local function fresh_rows(fresh, spec)
  local rows = {}
  for s, scope in ipairs(spec.scopes) do
    for n = (spec.ends[s - 1] or 0) + 1, spec.ends[s] do
      rows[n] = fresh[scope .. '\n' .. spec.names[n]]
    end
  end
  return rows
end

-- Of an open reservation that SQL has counted, the rates are still to be settled, the money is not.
local function forget_money(key, fresh, epoch, raw)
  local state, held_epoch, shadowed, skipped, number, shows, packed, counts, ids = recorded(raw)
  local spec = spec_of(packed)
  local count, rows, stay = #spec.kinds, fresh_rows(fresh, spec), rows_of(skipped) or {}
  local others = {}
  for n = 1, count do others[n] = not rows[n] or stay[n] end
  local how = how_of(spec, skipped, number, ids)
  how[1] = others
  open_all(spec, fetch(spec), 0, epoch)
  move(spec, {numbers(spec.amounts, counts)}, zeros(count), how)
  for n = 1, count do stay[n] = stay[n] or rows[n] end
  call('SET', key,
    record(state, held_epoch, shadowed, list_of(stay, count), number, shows, packed, counts, ids),
    'KEEPTTL')
end

-- Of one that ended before the seed, what it took goes back: SQL has counted it.
local function give_back(fresh, early, epoch)
  for i = 1, #early, 4 do
    local scope, field, id, amount = early[i], early[i + 1], early[i + 2], early[i + 3]
    if fresh[scope .. '\n' .. field] then
      local key = prefix .. 's:' .. scope
      local cells, lives_to = cells_of(call('GET', key), epoch)
      local cell = cell_of(cells, field, id == '' and 'balance' or 'quota')
      if id == '' then
        cell[1] = cell[1] + amount
      else
        local used = used_of(cell, id)
        cell[used] = cell[used] - amount
      end
      write_cells(key, cells, epoch, lives_to)
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
    local cells, lives_to = cells_of(call('GET', key), epoch)
    local new, money = sown(cell_of(cells, field, seeds[i + 2]), seeds[i + 3], seeds[i + 4])
    if new then
      if money then fresh[scope .. '\n' .. field] = true end
      write_cells(key, cells, epoch, lives_to)
    end
  end
  if not next(fresh) then return {now_ms, 1} end

  for _, id in ipairs(counted) do
    local key = prefix .. 'r:' .. id
    local raw = call('GET', key)
    local state, held_epoch, shadowed, shows, early, _
    if raw then
      state, held_epoch, shadowed, _, _, shows, _, _, early = recorded(raw)
    end
    local open_still = state == HELD or state == EXPIRED
    if not raw or (open_still and held_epoch ~= epoch) then
      mark(key, COUNTED, args[5], held_epoch or epoch, shadowed, shows)
    elseif open_still then
      forget_money(key, fresh, epoch, raw)
    elseif state == SETTLED and held_epoch == epoch and early ~= '' then
      give_back(fresh, unpacked(early), epoch) -- a mark keeps it there
      mark(key, SETTLED, args[5], epoch, shadowed, shows)
    end
  end
  return {now_ms, 1}
end
