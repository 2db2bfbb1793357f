defmodule PgliteEx.FrameTest do
  use ExUnit.Case, async: true

  alias PgliteEx.Frame

  doctest Frame

  # Shared with the program's own tests; its head describes the lines.
  @golden Path.expand("../../../tests/golden/frames.txt", __DIR__)
  @external_resource @golden

  @lines @golden
         |> File.read!()
         |> String.split("\n", trim: true)
         |> Enum.reject(&String.starts_with?(&1, "#"))
         |> Enum.map(&String.split(&1, " ", parts: 6))

  for ["frame", name, kind, id, payload, frame] <- @lines do
    test "the golden frame #{name} is decoded, and encoded to the same bytes" do
      <<length::32, bytes::binary>> = Base.decode16!(unquote(frame), case: :lower)
      assert length == byte_size(bytes)

      assert {:ok, frame} = Frame.decode(bytes)
      assert elem(frame, 1) == String.to_integer(unquote(id))
      assert {unquote(kind), payload(unquote(payload))} == split(bytes)
      assert IO.iodata_to_binary(Frame.encode(frame)) == bytes
    end
  end

  for ["options", name, bytes | meaning] <- @lines do
    test "the golden options #{name} mean what stands beside them" do
      payload = Base.decode16!(unquote(bytes), case: :lower)
      assert {:ok, {:open, 1, options}} = Frame.decode(<<"O", 1::32, payload::binary>>)
      assert options == meaning(unquote(Enum.join(meaning, " ")))
    end
  end

  for ["malformed", name, bytes] <- @lines do
    test "the golden malformed frame #{name} is refused" do
      <<_length::32, rest::binary>> = Base.decode16!(unquote(bytes), case: :lower)
      assert {:error, reason} = Frame.decode(rest)
      assert is_binary(reason)
    end
  end

  test "options that do not end, or go on after their end, are refused" do
    assert {:error, _} = Frame.decode(<<"L", 0::32>>)
    assert {:error, _} = Frame.decode(<<"L", 0::32, "level", 0, "warn", 0>>)
    assert {:error, _} = Frame.decode(<<"L", 0::32, 0, "level", 0, 0>>)
    assert {:error, _} = Frame.decode(<<"L", 0::32, 255, 0, "not utf-8", 0, 0>>)
  end

  test "a window of another size than four bytes is refused" do
    assert {:error, reason} = Frame.decode(<<"W", 1::32, 0, 0>>)
    assert reason =~ "2 bytes"
  end

  test "a reply that is neither ok nor error is refused" do
    assert {:error, reason} = Frame.decode(<<"R", 1::32, "perhaps", 0, 0>>)
    assert reason =~ "perhaps"
  end

  defp split(<<kind::binary-size(1), _id::32, payload::binary>>), do: {kind, payload}

  defp payload("-"), do: <<>>
  defp payload(hexadecimal), do: Base.decode16!(hexadecimal, case: :lower)

  defp meaning(text) do
    for pair <- String.split(text, "|", trim: true) do
      [key, value] = String.split(pair, "=", parts: 2)
      {key, value}
    end
  end
end
