defmodule PgliteEx.ReadyForQueryTest do
  use ExUnit.Case, async: true

  alias PgliteEx.ReadyForQuery

  doctest ReadyForQuery

  @answer <<"C", 13::32, "SELECT 1", 0, "Z", 5::32, "I">>

  for split <- 1..(byte_size(@answer) - 1) do
    test "a ReadyForQuery is seen at the end of an answer split after #{split} bytes" do
      <<first::binary-size(unquote(split)), second::binary>> = @answer
      tail = ReadyForQuery.tail(<<>>, [first])
      refute ReadyForQuery.at_end?(tail)
      assert tail |> ReadyForQuery.tail([second]) |> ReadyForQuery.at_end?()
      # Both pieces at once.
      assert <<>> |> ReadyForQuery.tail([second, first]) |> ReadyForQuery.at_end?()
    end
  end

  test "a ReadyForQuery is not the end when another message has begun after it" do
    tail = ReadyForQuery.tail(<<>>, [@answer])
    assert ReadyForQuery.at_end?(tail)
    refute tail |> ReadyForQuery.tail(["N"]) |> ReadyForQuery.at_end?()
  end

  test "a tail does not keep the bytes before it in memory" do
    tail = ReadyForQuery.tail(<<>>, [:binary.copy("x", 100_000)])
    assert :binary.referenced_byte_size(tail) == 6
  end
end
