defmodule PgliteEx.Session do
  @moduledoc false
  # Sessions of this library's own: simple queries on a raw connection, without a driver.

  alias PgliteEx.{Error, Parts, RawConnection, Readiness}

  # How long a session waits for a program that is being started, in milliseconds.
  @ready_timeout 5_000

  @doc """
  Gives `fun` a raw connection whose session waits for a query, and closes it afterwards.

  The session is one of the server's, as its user unless `:username` names another role. It needs no
  password: the program takes this library's word for it.
  `:stage` is that of `PgliteEx.Readiness.await/3`, and `:frame_options` are those of the frame that opens
  the connection.
  """
  @spec run(
          Registry.registry(),
          String.t(),
          [
            username: String.t(),
            stage: Readiness.stage(),
            frame_options: PgliteEx.Frame.options()
          ],
          (pid -> result)
        ) :: result | {:error, Error.t()}
        when result: term
  def run(registry, database, settings, fun) do
    options = Parts.options!(registry)
    username = Keyword.get(settings, :username, options.username)
    stage = Keyword.get(settings, :stage, :ready)
    frame_options = [{"trusted", "true"} | Keyword.get(settings, :frame_options, [])]
    argument = %{server: options.name, frame_options: frame_options, owner: self(), active: true}

    with {:ok, wasm_port} <- Readiness.await(registry, @ready_timeout, stage),
         {:ok, connection} <- RawConnection.open(registry, wasm_port, argument) do
      try do
        with {:ok, _rows} <- ask(connection, startup_packet(username, database)),
             do: fun.(connection)
      after
        RawConnection.close(connection)
      end
    end
  end

  @doc "Runs a query; returns the rows of its answer, as texts."
  @spec query(pid, String.t()) :: {:ok, [[nil | String.t()]]} | {:error, Error.t()}
  def query(connection, sql), do: ask(connection, [<<?Q, byte_size(sql) + 5::32>>, sql, 0])

  @doc """
  Quotes an identifier.

      iex> PgliteEx.Session.identifier(~S(a "b"))
      ~S("a ""b\""")
  """
  @spec identifier(String.t()) :: String.t()
  def identifier(name), do: "\"" <> String.replace(name, "\"", "\"\"") <> "\""

  @doc """
  Quotes a string, whatever `standard_conforming_strings` is.

      iex> PgliteEx.Session.literal(~S(it's a \\\\))
      ~S(E'it''s a \\\\\\\\')
  """
  @spec literal(String.t()) :: String.t()
  def literal(text),
    do: "E'" <> (text |> String.replace("\\", "\\\\") |> String.replace("'", "''")) <> "'"

  # Of protocol 3.0.
  defp startup_packet(username, database) do
    parameters = ["user", 0, username, 0, "database", 0, database, 0, 0]
    [<<IO.iodata_length(parameters) + 8::32, 3::16, 0::16>> | parameters]
  end

  # Sends a message, and reads the answer until the session waits for input again.
  defp ask(connection, message) do
    monitor = Process.monitor(connection)
    # Why it could not be sent comes as a message.
    _ = RawConnection.send(connection, message)
    answer = answer(connection, monitor, <<>>, {:ok, []})
    Process.demonitor(monitor, [:flush])
    answer
  end

  defp answer(_connection, _monitor, <<?Z, 5::32, _status>>, outcome),
    do: with({:ok, rows} <- outcome, do: {:ok, Enum.reverse(rows)})

  defp answer(connection, monitor, <<type, size::32, rest::binary>> = bytes, outcome)
       when size >= 4 and byte_size(rest) >= size - 4 do
    <<_header::binary-size(5), body::binary-size(size - 4), rest::binary>> = bytes
    answer(connection, monitor, rest, outcome(outcome, type, body))
  end

  defp answer(connection, monitor, bytes, outcome) do
    receive do
      {:pglite_ex, ^connection, {:data, more}} ->
        answer(connection, monitor, bytes <> more, outcome)

      {:pglite_ex, ^connection, {:closed, reason}} ->
        with {:ok, _rows} <- outcome, do: {:error, Error.from_reason(reason)}

      {:DOWN, ^monitor, :process, ^connection, _killed} ->
        {:error, %Error{code: "08003", message: "the connection is closed"}}
    end
  end

  defp outcome({:ok, rows}, ?D, <<_count::16, row::binary>>), do: {:ok, [columns(row) | rows]}
  defp outcome({:ok, _rows}, ?E, fields), do: {:error, error(fields)}
  defp outcome(outcome, _type, _body), do: outcome

  defp columns(<<>>), do: []
  defp columns(<<-1::signed-32, others::binary>>), do: [nil | columns(others)]

  defp columns(<<size::32, text::binary-size(size), others::binary>>),
    do: [text | columns(others)]

  defp error(fields) do
    fields =
      for <<key, value::binary>> <- :binary.split(fields, <<0>>, [:global]), do: {key, value}

    {?C, code} = List.keyfind(fields, ?C, 0)
    {?M, message} = List.keyfind(fields, ?M, 0)
    {?H, hint} = List.keyfind(fields, ?H, 0, {?H, nil})
    %Error{code: code, message: message, hint: hint}
  end
end
