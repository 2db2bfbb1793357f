defmodule PgliteEx.Connection do
  @moduledoc """
  One client: the bytes of its socket to frames, and back.

  The socket is read with `active: :once` and only while the channel takes more, so a client
  that sends faster than Postgres reads is slowed down by TCP. A client that does not read holds
  up this process in `:gen_tcp.send/2`, and through the window the session that serves it; nobody
  else, and with at most one window of bytes kept here.

  Nothing here parses the Postgres protocol. When the program is gone, or has refused the
  connection, the client is told with the one message that this library writes itself, an
  ErrorResponse (`57P01` when the program is gone).
  """

  use GenServer, restart: :temporary, shutdown: 300

  alias PgliteEx.{Channel, Options, ReadyForQuery, Telemetry}

  # How long a client that does not read may hold up the last words, in milliseconds.
  @farewell_timeout 100

  @doc false
  @spec start_link({wasm_port :: pid | nil, Options.t()}) :: GenServer.on_start()
  def start_link({wasm_port, %Options{} = options}),
    do: GenServer.start_link(__MODULE__, {wasm_port, options})

  @doc "Gives the connection the socket that it controls now."
  @spec serve(pid, :gen_tcp.socket()) :: :ok
  def serve(connection, socket), do: GenServer.cast(connection, {:serve, socket})

  @doc """
  The program that serves the connection, and the connection's number in it.

  `nil` before it has one, and when it is gone or held up by a client that does not read.
  """
  @spec identity(pid) :: {wasm_port :: pid, PgliteEx.Frame.id()} | nil
  def identity(connection) do
    GenServer.call(connection, :identity)
  catch
    :exit, _gone_or_held_up -> nil
  end

  @impl GenServer
  def init({wasm_port, options}) do
    # So that `terminate/2` runs and the client hears why its connection ends.
    Process.flag(:trap_exit, true)

    {:ok,
     %{
       wasm_port: wasm_port,
       metadata: %{server: options.name, mode: options.mode},
       socket: nil,
       channel: nil,
       started_at: System.monotonic_time(),
       first_answer: nil,
       bytes_in: 0,
       bytes_out: 0,
       # The end of what the client got since its own last bytes; empty while it waits.
       tail: <<>>
     }}
  end

  @impl GenServer
  def handle_cast({:serve, socket}, state) do
    state = %{state | socket: socket}

    case Channel.open(state.wasm_port, addresses(socket)) do
      {:ok, channel} ->
        metadata = Map.merge(state.metadata, %{id: channel.id, peer: peer(socket)})
        state = %{state | channel: channel, metadata: metadata}
        Telemetry.execute([:connection, :start], %{system_time: System.system_time()}, metadata)
        await_input(state)

      {:error, _program_gone} ->
        stop(Channel.program_gone(), state)
    end
  end

  @impl GenServer
  def handle_call(:identity, _from, %{channel: nil} = state), do: {:reply, nil, state}

  def handle_call(:identity, _from, state),
    do: {:reply, {state.wasm_port, state.channel.id}, state}

  @impl GenServer
  def handle_info({:tcp, socket, bytes}, %{socket: socket} = state) do
    channel = Channel.send(state.channel, bytes)
    state = %{state | channel: channel, bytes_in: state.bytes_in + byte_size(bytes), tail: <<>>}
    await_input(state)
  end

  def handle_info({:tcp_closed, socket}, %{socket: socket} = state), do: client_gone(state)
  def handle_info({:tcp_error, socket, _posix}, %{socket: socket} = state), do: client_gone(state)

  def handle_info(message, %{channel: %Channel{}} = state) do
    case Channel.handle(state.channel, message) do
      {:data, chunks, size, channel} -> answer(chunks, size, %{state | channel: channel})
      {:window, channel} -> await_input(%{state | channel: channel})
      {:closed, reason} -> stop(reason, state)
      :unknown -> {:noreply, state}
    end
  end

  def handle_info(_stray_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, state) do
    reason = Channel.closing_reason(reason)
    if state.socket, do: close_socket(reason, state)

    if state.channel do
      Telemetry.execute(
        [:connection, :stop],
        %{
          duration: System.monotonic_time() - state.started_at,
          first_answer: state.first_answer,
          bytes_in: state.bytes_in,
          bytes_out: state.bytes_out
        },
        Map.put(state.metadata, :reason, reason)
      )
    end
  end

  defp await_input(state) do
    if Channel.writable?(state.channel) do
      case :inet.setopts(state.socket, active: :once) do
        :ok -> {:noreply, state}
        {:error, _closed} -> client_gone(state)
      end
    else
      {:noreply, state}
    end
  end

  defp answer(newest_first, size, state) do
    case :gen_tcp.send(state.socket, Enum.reverse(newest_first)) do
      :ok ->
        {:noreply,
         %{
           state
           | channel: Channel.consumed(state.channel, size),
             bytes_out: state.bytes_out + size,
             first_answer: state.first_answer || System.monotonic_time() - state.started_at,
             tail: ReadyForQuery.tail(state.tail, newest_first)
         }}

      {:error, _closed} ->
        client_gone(state)
    end
  end

  defp client_gone(state) do
    reason = %{"severity" => "LOG", "code" => "08006", "message" => "the client is gone"}
    stop(reason, state)
  end

  defp stop(reason, state), do: {:stop, {:shutdown, {:closed, reason}}, state}

  defp close_socket(reason, state) do
    if last_words?(reason, state) do
      :inet.setopts(state.socket, send_timeout: @farewell_timeout)
      :gen_tcp.send(state.socket, error_response(reason))
    end

    :gen_tcp.close(state.socket)
  end

  # The program tells a client itself why its session ends, unless it never had one or is gone.
  defp last_words?(%{"severity" => "LOG"}, _state), do: false
  defp last_words?(_error, %{bytes_out: 0}), do: true

  # An ErrorResponse in the middle of another message would be read as part of it, as data of a
  # row perhaps. Two moments are known to be between messages without parsing any: the client
  # waits for an answer, or the last bytes that it got were a ReadyForQuery.
  defp last_words?(reason, %{tail: tail}) do
    reason == Channel.program_gone() and (tail == <<>> or ReadyForQuery.at_end?(tail))
  end

  defp error_response(reason) do
    fields = [
      [?S, reason["severity"], 0],
      [?V, reason["severity"], 0],
      [?C, reason["code"], 0],
      [?M, reason["message"], 0],
      0
    ]

    [?E, <<IO.iodata_length(fields) + 4::32>> | fields]
  end

  # Where the client is, for its session; nothing is told of a unix socket.
  defp addresses(socket) do
    address("peer", :inet.peername(socket)) ++ address("local", :inet.sockname(socket))
  end

  defp address(which, {:ok, {ip, port}}) when is_tuple(ip) do
    [
      {"#{which}_address", List.to_string(:inet.ntoa(ip))},
      {"#{which}_port", Integer.to_string(port)}
    ]
  end

  defp address(_which, _unix_or_closed), do: []

  defp peer(socket) do
    case :inet.peername(socket) do
      {:ok, peer} -> peer
      {:error, _closed} -> nil
    end
  end
end
