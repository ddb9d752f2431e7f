-- A seeded balance moves by so much, once an id. Keys: epoch, the adjustment's mark.
-- Arguments: nonce, epoch meant, scope, field, delta, kept_ms.
-- Reply: {now_ms, 1, or 0 when the tag is of another epoch or the balance not seeded}.

local function adjust(keys, args)
  begin(keys[1])
  local key = prefix .. 's:' .. args[3]
  local found = call('MGET', keys[1], keys[2], key)
  local epoch = the_epoch(found[1], args[1])
  if epoch ~= args[2] then return {now_ms, 0} end
  if found[2] then return {now_ms, 1} end
  local cells, lives_to = cells_of(found[3], epoch)
  local purse = cells[args[4]]
  if not purse or purse[3] ~= 1 then return {now_ms, 0} end
  purse[1] = purse[1] + args[5]
  write_cells(key, cells, epoch, lives_to)
  mark(keys[2], SETTLED, args[6], epoch)
  return {now_ms, 1}
end
