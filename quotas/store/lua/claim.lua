-- A name belongs to the request that claimed it first, for a time.
-- Keys: the name's. Arguments: request id, ms. Reply: {now_ms, the id that holds it}.

local function claim(keys, args)
  begin(keys[1])
  local held = call('GET', keys[1])
  if held then return {now_ms, held} end
  call('SET', keys[1], args[1], 'PX', args[2])
  return {now_ms, args[1]}
end
