defmodule PgliteEx.ReadyForQuery do
  @moduledoc false
  # Sees at the end of what a session has sent that it waits for input, without parsing messages.
  #
  # A session ends every answer with the message ReadyForQuery, six bytes. The receiver of an answer,
  # split anywhere, keeps a `t:tail/0` of it and asks `at_end?/1`. The same six bytes can be part of
  # other data, and then stand at the end of a piece by chance.

  # All but the last byte, the transaction status (protocol.sgml, "Message Formats").
  @start <<"Z", 5::32>>
  @size byte_size(@start) + 1

  @typedoc "The last bytes received, at most six; none where an answer begins."
  @type tail :: binary

  @doc """
  The tail when more has been received, as pieces, the newest first.

      iex> PgliteEx.ReadyForQuery.tail(<<"Z", 0, 0>>, [<<5, "I">>, <<0>>])
      <<"Z", 0, 0, 0, 5, "I">>
  """
  @spec tail(tail, newest_first :: [binary, ...]) :: tail
  def tail(_before, [newest | _older]) when byte_size(newest) >= @size,
    do: last_bytes(newest, @size)

  def tail(before, newest_first) do
    bytes = IO.iodata_to_binary([before | Enum.reverse(newest_first)])
    last_bytes(bytes, min(byte_size(bytes), @size))
  end

  @doc """
  Whether the last message is a ReadyForQuery.

      iex> PgliteEx.ReadyForQuery.at_end?(<<"Z", 0, 0, 0, 5, "I">>)
      true

      iex> PgliteEx.ReadyForQuery.at_end?("")
      false
  """
  @spec at_end?(tail) :: boolean
  def at_end?(<<@start, _status>>), do: true
  def at_end?(_tail), do: false

  # Copied, because a part of a binary keeps all of it in memory.
  defp last_bytes(bytes, size),
    do: bytes |> binary_part(byte_size(bytes), -size) |> :binary.copy()
end
