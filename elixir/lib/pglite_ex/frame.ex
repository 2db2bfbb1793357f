defmodule PgliteEx.Frame do
  @moduledoc false
  # The frames that the VM and `pglite-port` exchange; the mirror of the program's `frame.rs`.
  #
  # On the wire a frame is `length: u32 · kind: u8 · id: u32 · payload`, big-endian. The port
  # (`{:packet, 4}`) writes and strips the length, so this module sees the rest.
  # One golden file, `tests/golden/frames.txt`, is checked by the tests of both languages.
  #
  # Options are pairs of strings in the form of a startup packet: `key\\0value\\0…\\0`.

  @typedoc "A connection's or a request's number; 0 stands for the program itself."
  @type id :: 0..0xFFFFFFFF

  @typedoc "Options, in the order in which they stand in the frame."
  @type options :: [{String.t(), String.t()}]

  @type t ::
          {:hello, id, options}
          | {:open, id, options}
          | {:data, id, iodata}
          | {:window, id, non_neg_integer}
          | {:close, id}
          | {:closed, id, options}
          | {:request, id, verb :: String.t(), options}
          | {:reply, id, :ok | :error, options}
          | {:log, id, options}

  @doc """
  Encodes a frame, without its length.

  Raises `ArgumentError` for a verb, a key or a value that a frame cannot carry: they are UTF-8
  without a NUL, and verbs and keys are not empty.

      iex> PgliteEx.Frame.encode({:open, 7, [{"mode", "shared"}]}) |> IO.iodata_to_binary()
      <<"O", 0, 0, 0, 7, "mode", 0, "shared", 0, 0>>

      iex> PgliteEx.Frame.encode({:window, 7, 4096}) |> IO.iodata_to_binary()
      <<"W", 7::32, 4096::32>>
  """
  @spec encode(t) :: iodata
  def encode({:data, id, bytes}), do: [<<?D, id::32>> | List.wrap(bytes)]
  def encode({:window, id, bytes}), do: <<?W, id::32, bytes::32>>
  def encode({:open, id, options}), do: [<<?O, id::32>> | encode_options(options)]
  def encode({:close, id}), do: <<?C, id::32>>
  def encode({:closed, id, options}), do: [<<?C, id::32>> | encode_options(options)]
  def encode({:hello, id, options}), do: [<<?H, id::32>> | encode_options(options)]
  def encode({:log, id, options}), do: [<<?L, id::32>> | encode_options(options)]

  def encode({:request, id, verb, options}),
    do: [<<?Q, id::32>>, encode_name(verb) | encode_options(options)]

  def encode({:reply, id, result, options}),
    do: [<<?R, id::32>>, Atom.to_string(result), 0 | encode_options(options)]

  @doc """
  Decodes one frame, given without its length.

      iex> PgliteEx.Frame.decode(<<"D", 7::32, "bytes">>)
      {:ok, {:data, 7, "bytes"}}

      iex> PgliteEx.Frame.decode(<<"C", 7::32, "code", 0, "00000", 0, 0>>)
      {:ok, {:closed, 7, [{"code", "00000"}]}}

      iex> PgliteEx.Frame.decode(<<"?", 7::32>>)
      {:error, "unknown kind 63"}
  """
  @spec decode(binary) :: {:ok, t} | {:error, String.t()}
  def decode(<<?D, id::32, bytes::binary>>), do: {:ok, {:data, id, bytes}}
  def decode(<<?W, id::32, bytes::32>>), do: {:ok, {:window, id, bytes}}
  def decode(<<?C, id::32>>), do: {:ok, {:close, id}}

  def decode(<<?R, id::32, payload::binary>>) do
    with {:ok, result, rest} <- decode_string(payload),
         {:ok, result} <- decode_result(result),
         {:ok, options} <- decode_options(rest),
         do: {:ok, {:reply, id, result, options}}
  end

  def decode(<<?Q, id::32, payload::binary>>) do
    with {:ok, verb, rest} <- decode_string(payload),
         {:ok, options} <- decode_options(rest),
         do: {:ok, {:request, id, verb, options}}
  end

  for {kind, name} <- [{?O, :open}, {?C, :closed}, {?H, :hello}, {?L, :log}] do
    def decode(<<unquote(kind), id::32, payload::binary>>) do
      with {:ok, options} <- decode_options(payload), do: {:ok, {unquote(name), id, options}}
    end
  end

  def decode(<<?W, _id::32, payload::binary>>),
    do: {:error, "a window of #{byte_size(payload)} bytes instead of 4"}

  def decode(<<kind, _id::32, _payload::binary>>), do: {:error, "unknown kind #{kind}"}

  def decode(short) when is_binary(short),
    do: {:error, "#{byte_size(short)} bytes are too short for a frame"}

  defp encode_options(options),
    do: [for({key, value} <- options, do: [encode_name(key) | encode_string(value)]), 0]

  defp encode_name(""), do: raise(ArgumentError, "a verb or the key of an option is empty")
  defp encode_name(name), do: encode_string(name)

  defp encode_string(string) do
    if is_binary(string) and String.valid?(string) and not String.contains?(string, <<0>>),
      do: [string, 0],
      else: raise(ArgumentError, "#{inspect(string)} is not a string without a NUL")
  end

  defp decode_options(payload), do: decode_options(payload, [])

  defp decode_options(<<0>>, pairs), do: {:ok, Enum.reverse(pairs)}

  defp decode_options(payload, pairs) do
    with {:ok, key, rest} when key != "" <- decode_string(payload),
         {:ok, value, rest} <- decode_string(rest) do
      decode_options(rest, [{key, value} | pairs])
    else
      {:ok, "", _rest} -> {:error, "bytes after the end of the options"}
      {:error, reason} -> {:error, reason}
    end
  end

  defp decode_string(payload) do
    case :binary.split(payload, <<0>>) do
      [string, rest] -> if String.valid?(string), do: {:ok, string, rest}, else: not_utf8(string)
      [_unterminated] -> {:error, "a string without its final NUL"}
    end
  end

  defp not_utf8(string), do: {:error, "#{inspect(string)} is not UTF-8"}

  defp decode_result("ok"), do: {:ok, :ok}
  defp decode_result("error"), do: {:ok, :error}
  defp decode_result(other), do: {:error, "a reply that is neither ok nor error: #{other}"}
end
