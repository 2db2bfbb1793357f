defmodule PgliteEx.WireClient do
  @moduledoc """
  A Postgres client of a few dozen lines, for tests that look at the bytes or that need hundreds
  of clients at once.
  """

  @ssl_request <<8::32, 80_877_103::32>>

  @doc "Connects a socket to a server, without sending anything."
  def connect!(server, options \\ []) do
    options = [:binary, active: false] ++ options

    {:ok, socket} =
      case PgliteEx.address(server) do
        {:local, path} -> :gen_tcp.connect({:local, path}, 0, options)
        {host, port} -> :gen_tcp.connect(host, port, options)
      end

    socket
  end

  @doc "Connects and starts a session; returns the socket and the session's cancel key."
  def start_session!(server, parameters \\ []) do
    socket = connect!(server)
    :ok = :gen_tcp.send(socket, startup_packet(parameters))
    {:ok, messages} = receive_answer(socket)
    {?K, key} = List.keyfind(messages, ?K, 0)
    {socket, key}
  end

  @doc "Connects and starts a session with connection options; returns the socket."
  def start_session_with!(connection_opts) do
    {:ok, socket} = start_session_with(connection_opts)
    socket
  end

  @doc "Does the same, or returns the fields of the error with which it was refused."
  def start_session_with(connection_opts) do
    {address, port} =
      case Map.new(connection_opts) do
        %{socket: path} when path != nil ->
          {{:local, path}, 0}

        %{hostname: host, port: port} ->
          {:ok, address} = host |> String.to_charlist() |> :inet.parse_address()
          {address, port}
      end

    {:ok, socket} = :gen_tcp.connect(address, port, [:binary, active: false])
    own = [user: connection_opts[:username], database: connection_opts[:database]]
    parameters = own ++ Keyword.get(connection_opts, :parameters, [])
    :ok = :gen_tcp.send(socket, startup_packet(parameters))

    with {:ok, messages} <- receive_answer(socket) do
      case List.keyfind(messages, ?E, 0) do
        nil -> {:ok, socket}
        {?E, fields} -> {:error, fields}
      end
    else
      # Refused, and closed.
      {:ended, messages} -> {:error, messages |> List.keyfind(?E, 0) |> elem(1)}
    end
  end

  @doc "A startup packet of protocol 3.0."
  def startup_packet(parameters \\ []) do
    parameters = Keyword.merge([user: "postgres", database: "postgres"], parameters)
    body = for {key, value} <- parameters, do: [to_string(key), 0, value, 0]
    size = IO.iodata_length(body) + 9
    IO.iodata_to_binary([<<size::32, 3::16, 0::16>>, body, 0])
  end

  @doc "The packet that asks for encryption."
  def ssl_request, do: @ssl_request

  @doc "The packet that cancels what the session with this key is doing."
  def cancel_request(key), do: [<<byte_size(key) + 8::32, 80_877_102::32>>, key]

  @doc "A simple query message."
  def query_message(sql), do: [<<?Q, byte_size(sql) + 5::32>>, sql, 0]

  @doc "The message with which a client ends its session."
  def terminate_message, do: <<?X, 4::32>>

  @doc "Runs a simple query: rows of texts, or the error's SQLSTATE."
  def query(socket, sql, timeout \\ 30_000) do
    :ok = :gen_tcp.send(socket, query_message(sql))

    with {:ok, messages} <- receive_answer(socket, timeout) do
      case List.keyfind(messages, ?E, 0) do
        nil -> {:ok, for({?D, row} <- messages, do: columns(row))}
        {?E, fields} -> {:error, sqlstate(fields)}
      end
    end
  end

  @doc "The rows of a query in a session of its own, with these startup parameters."
  def rows!(server, sql, parameters \\ []) do
    {client, _key} = start_session!(server, parameters)
    {:ok, rows} = query(client, sql)
    :gen_tcp.close(client)
    rows
  end

  @doc "All messages until the session waits for input, or until it says that it ends."
  def receive_answer(socket, timeout \\ 30_000, messages \\ []) do
    with {:ok, message} <- receive_message(socket, timeout) do
      case message do
        {?Z, _status} -> {:ok, Enum.reverse([message | messages])}
        message -> receive_answer(socket, timeout, [message | messages])
      end
    else
      {:error, :closed} when messages != [] -> {:ended, Enum.reverse(messages)}
      {:error, reason} -> {:error, reason}
    end
  end

  @doc "Whether bytes end with a ReadyForQuery, when nobody has taken them apart."
  def ready?(bytes) do
    start = byte_size(bytes) - 6
    start >= 0 and match?(<<_::binary-size(start), ?Z, 5::32, _status>>, bytes)
  end

  @doc "One message: its type and its body."
  def receive_message(socket, timeout \\ 30_000) do
    with {:ok, <<type, size::32>>} <- :gen_tcp.recv(socket, 5, timeout),
         {:ok, body} <- receive_body(socket, size - 4, timeout),
         do: {:ok, {type, body}}
  end

  @doc "The SQLSTATE among the fields of an ErrorResponse."
  def sqlstate(fields) do
    fields
    |> :binary.split(<<0>>, [:global])
    |> Enum.find_value(fn
      <<?C, code::binary>> -> code
      _field -> nil
    end)
  end

  defp receive_body(_socket, 0, _timeout), do: {:ok, <<>>}
  defp receive_body(socket, size, timeout), do: :gen_tcp.recv(socket, size, timeout)

  defp columns(<<_count::16, columns::binary>>), do: column_list(columns)

  defp column_list(<<>>), do: []
  defp column_list(<<-1::signed-32, rest::binary>>), do: [nil | column_list(rest)]

  defp column_list(<<size::32, column::binary-size(size), rest::binary>>),
    do: [column | column_list(rest)]
end
