-- A seeded balance moves by so much, once an id. Keys: epoch, the adjustment's mark.
-- Arguments: nonce, epoch meant, scope, field, delta, kept_ms.
-- Reply: {now_ms, 1, or 0 when the tag is of another epoch or the balance not seeded}.

local function adjust(keys, args)
  begin(keys[1])
  local got = call('MGET', keys[1], keys[2])
  local epoch = the_epoch(got[1], args[1])
  if epoch ~= args[2] then return {now_ms, 0} end
  if got[2] then return {now_ms, 1} end
  local key = prefix .. 's:' .. args[3]
  local found = call('HMGET', key, '~', args[4])
  local purse = purse_of(found[2], epoch)
  if purse[4] ~= 1 then return {now_ms, 0} end
  purse[1] = purse[1] + args[5]
  write(key, put(0, args[4], pack(purse)), LONGEST_MS, found[1])
  mark(keys[2], 'adjusted', args[6], epoch)
  return {now_ms, 1}
end
