-- The tag's epoch, begun where there is none. Keys: epoch. Arguments: nonce. Reply: {now_ms, epoch}.

local function epoch(keys, args)
  begin(keys[1])
  return {now_ms, the_epoch(call('GET', keys[1]), args[1])}
end
