-- The name is free again, if this request holds it.
-- Keys: the name's. Arguments: request id. Reply: {now_ms, 1 when it did}.

local function unclaim(keys, args)
  begin(keys[1])
  if call('GET', keys[1]) ~= args[1] then return {now_ms, 0} end
  call('DEL', keys[1])
  return {now_ms, 1}
end
