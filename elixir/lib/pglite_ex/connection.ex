defmodule PgliteEx.Connection do
  @moduledoc false
  # One client of the socket: passes bytes from its socket to frames, and back.
  #
  # The socket is read with `active: :once` and only while the channel takes more, so a client
  # that sends faster than Postgres reads is slowed down by TCP. When a client does not read, this
  # process waits in `:gen_tcp.send/2`, at most for the time in the option `:send_timeout`, and its
  # session waits for the window; no other process does. At most one window of bytes is kept here.
  #
  # Nothing here parses the Postgres protocol, except for the request for TLS (`PgliteEx.Transport`).
  # When the program has ended, or has refused the connection, the client gets the only message that
  # this library writes itself, an ErrorResponse (`57P01` when the program has ended).

  use GenServer, restart: :temporary, shutdown: 300

  alias PgliteEx.{
    Channel,
    HalfOpen,
    Identity,
    Options,
    Readiness,
    ReadyForQuery,
    Span,
    StartupTime,
    Telemetry,
    Transport
  }

  # How long sending the last ErrorResponse may take, in milliseconds.
  @farewell_timeout 100
  # How long a client waits for a program that is being started, in milliseconds.
  @ready_timeout 10_000

  @typedoc """
  The process that hands over a socket; the registry with the program, if there is one, the stage at
  which the program serves the connection, the options of the frame that opens it, and the mark that
  says whether it is half-open.
  """
  @type argument :: %{
          acceptor: pid,
          program: Registry.registry() | nil,
          stage: Readiness.stage(),
          options: Options.t(),
          frame_options: PgliteEx.Frame.options(),
          mark: HalfOpen.mark()
        }

  @typedoc """
  The program that serves a connection, its number there, the name of the server, and that of the
  cluster if the connection names one.
  """
  @type identity :: %{
          wasm_port: pid,
          id: PgliteEx.Frame.id(),
          server: nil | GenServer.name(),
          cluster: nil | String.t()
        }

  @doc false
  @spec start_link(argument) :: GenServer.on_start()
  def start_link(argument), do: GenServer.start_link(__MODULE__, argument)

  @doc "Gives the connection the socket that it controls now."
  @spec serve(pid, :gen_tcp.socket()) :: :ok
  def serve(connection, socket), do: GenServer.cast(connection, {:serve, socket})

  @doc "Ends the connection if its client has still to agree on TLS, because there are too many of that kind."
  @spec crowd_out(pid) :: :ok
  def crowd_out(connection), do: GenServer.cast(connection, :crowd_out)

  @doc """
  The program that serves the connection, and the connection's number in it.

  `nil` before it has one, when it has ended, and while it waits for a client that does not read.
  """
  @spec identity(pid) :: identity | nil
  def identity(connection) do
    GenServer.call(connection, :identity)
  catch
    :exit, _gone_or_held_up -> nil
  end

  @impl GenServer
  def init(%{acceptor: acceptor} = argument) do
    # So that `terminate/2` runs, which tells the client why its connection ends.
    Process.flag(:trap_exit, true)

    {:ok,
     %{
       # Until it has handed over the socket.
       acceptor: Process.monitor(acceptor),
       program: argument.program,
       stage: argument.stage,
       options: argument.options,
       frame_options: argument.frame_options,
       mark: argument.mark,
       # The request for a program that is ready.
       waiting: nil,
       wasm_port: nil,
       socket: nil,
       # What the client has sent before it is known whether it asks for TLS; `nil` when that is known.
       first: nil,
       # The process that agrees on TLS with the client, and controls the socket meanwhile.
       handshake: nil,
       # When a client of a server with `ssl:` has to be done with both, in milliseconds of the monotonic clock.
       deadline: nil,
       # The certificate that it has been shown.
       shown: nil,
       # What it has sent before the program was ready.
       early: <<>>,
       channel: nil,
       span: nil,
       first_answer: nil,
       bytes_in: 0,
       bytes_out: 0,
       # The last bytes sent to the client since it last sent any; empty while it waits.
       tail: <<>>
     }}
  end

  @impl GenServer
  def handle_cast({:serve, socket}, state) do
    Process.demonitor(state.acceptor, [:flush])
    state = %{state | socket: {:tcp, socket}, acceptor: nil}

    if encryptable?(state) do
      deadline = System.monotonic_time(:millisecond) + StartupTime.limit(state.options)
      Process.send_after(self(), :late, deadline, abs: true)
      await_first(%{state | first: <<>>, deadline: deadline})
    else
      await_program(state)
    end
  end

  def handle_cast(:crowd_out, %{first: nil, handshake: nil} = state), do: {:noreply, state}

  # As PostgreSQL, with SQLSTATE `too_many_connections`.
  def handle_cast(:crowd_out, state) do
    message = "sorry, too many clients already"
    stop(%{"severity" => "FATAL", "code" => "53300", "message" => message}, state)
  end

  @impl GenServer
  def handle_call(:identity, _from, %{channel: nil} = state), do: {:reply, nil, state}

  def handle_call(:identity, _from, %{wasm_port: wasm_port, channel: channel} = state) do
    cluster = Map.new(state.frame_options)["cluster"]
    server = state.options.name
    {:reply, %{wasm_port: wasm_port, id: channel.id, server: server, cluster: cluster}, state}
  end

  @impl GenServer
  # The socket has closed with the acceptor, or closes with this process.
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{acceptor: monitor} = state),
    do: {:stop, {:shutdown, :not_handed_over}, state}

  # The client has said nothing since it has connected, or not enough.
  def handle_info(:late, %{first: bytes} = state) when bytes != nil, do: client_gone(state)

  def handle_info({monitor, result}, %{handshake: %Task{ref: monitor}} = state) do
    Process.demonitor(monitor, [:flush])

    case result do
      {:ok, socket, shown} ->
        await_program(%{state | socket: socket, shown: shown, handshake: nil})

      {:error, _reason} ->
        no_agreement(state)
    end
  end

  def handle_info(
        {:DOWN, monitor, :process, _pid, _crash},
        %{handshake: %Task{ref: monitor}} = state
      ),
      do: no_agreement(state)

  def handle_info(message, state) do
    case Transport.handle(state.socket, message) do
      {:data, bytes} -> handle_bytes(bytes, state)
      :gone -> client_gone(state)
      :unknown -> handle_program(message, state)
    end
  end

  @impl GenServer
  def terminate(reason, state) do
    if state.socket, do: close_socket(Channel.closing_reason(reason), state)
    if state.span, do: stop_span(reason, state)
  end

  defp handle_bytes(bytes, %{first: nil} = state) do
    channel = Channel.send(state.channel, bytes)

    await_input(%{
      state
      | channel: channel,
        bytes_in: state.bytes_in + byte_size(bytes),
        tail: <<>>
    })
  end

  defp handle_bytes(bytes, state) do
    first = state.first <> bytes

    case Transport.first(first) do
      :more -> await_first(%{state | first: first})
      :plain -> await_program(%{state | first: nil, early: first})
      :error -> client_gone("bytes followed the request for TLS before its answer", state)
      :encrypt -> encrypt(&Transport.encrypt/3, state)
      :encrypted -> encrypt(&Transport.go_on_encrypted(&1, first, &2, &3), state)
    end
  end

  # The function waits for the client.
  defp encrypt(function, %{socket: socket, program: program, deadline: deadline} = state) do
    connection = self()

    task =
      Task.async(fn ->
        receive do: (:begin -> :ok)

        with {:ok, identity} <- Identity.current(program),
             left = max(deadline - System.monotonic_time(:millisecond), 0),
             {:ok, encrypted} <- function.(socket, identity.options.(), left),
             :ok <- Transport.give(encrypted, connection),
             do: {:ok, encrypted, identity.certificate},
             else: (_no_server_or_error -> {:error, :no_agreement})
      end)

    # If that fails the socket is closed, and the handshake fails as well.
    _ = Transport.give(socket, task.pid)
    send(task.pid, :begin)
    {:noreply, %{state | first: nil, socket: nil, handshake: task}}
  end

  defp no_agreement(state),
    do: client_gone("the client and the server cannot agree on TLS", %{state | handshake: nil})

  # As PostgreSQL, only over TCP.
  defp encryptable?(%{options: options, socket: {:tcp, socket}}),
    do:
      options.ssl != nil and match?({:ok, {ip, _port}} when is_tuple(ip), :inet.peername(socket))

  defp await_first(state) do
    case Transport.activate(state.socket) do
      :ok -> {:noreply, state}
      {:error, _closed} -> client_gone(state)
    end
  end

  defp await_program(state) do
    HalfOpen.settle(state.mark)

    case Readiness.request(state.program, @ready_timeout, state.stage) do
      {:ok, request} -> {:noreply, %{state | waiting: request}}
      {:error, error} -> refuse(error, state)
    end
  end

  defp handle_program(message, %{channel: nil, waiting: request} = state) when request != nil do
    case Readiness.handle_outcome(request, message) do
      {:ok, wasm_port} -> open(%{state | waiting: nil, wasm_port: wasm_port})
      {:error, error} -> refuse(error, state)
      :unknown -> {:noreply, state}
    end
  end

  defp handle_program(message, %{channel: %Channel{}} = state) do
    case Channel.handle(state.channel, message) do
      {:data, chunks, size, channel} -> answer(chunks, size, %{state | channel: channel})
      {:window, channel} -> await_input(%{state | channel: channel})
      {:closed, reason} -> stop(reason, state)
      :unknown -> {:noreply, state}
    end
  end

  defp handle_program(_stray_message, state), do: {:noreply, state}

  defp open(state) do
    case Channel.open(
           state.wasm_port,
           state.frame_options ++
             Transport.frame_options(state.socket, state.shown) ++ addresses(state.socket)
         ) do
      {:ok, channel} ->
        state = start_span(%{state | channel: channel}, channel.id)

        if state.early == <<>>,
          do: await_input(state),
          else: handle_bytes(state.early, %{state | early: <<>>})

      {:error, error} ->
        refuse(error, state)
    end
  end

  defp refuse(error, state) do
    reason = %{"severity" => "FATAL", "code" => error.code, "message" => error.message}
    stop(reason, start_span(state, nil))
  end

  defp start_span(%{options: options} = state, id) do
    metadata = %{server: options.name, mode: options.mode, id: id, peer: peer(state.socket)}
    {span, event} = Span.start([:connection], metadata)
    Telemetry.execute(event)
    %{state | span: span}
  end

  defp stop_span(reason, %{span: span} = state) do
    measurements = Map.take(state, [:first_answer, :bytes_in, :bytes_out])

    Telemetry.execute(
      case reason do
        {reason, stacktrace} when is_list(stacktrace) ->
          Span.exception(span, measurements, :exit, reason, stacktrace)

        reason ->
          Span.stop(span, measurements, %{reason: Channel.closing_reason(reason)})
      end
    )
  end

  defp await_input(state) do
    if Channel.writable?(state.channel) do
      case Transport.activate(state.socket) do
        :ok -> {:noreply, state}
        {:error, _closed} -> client_gone(state)
      end
    else
      {:noreply, state}
    end
  end

  defp answer(newest_first, size, state) do
    case Transport.send(state.socket, Enum.reverse(newest_first)) do
      :ok ->
        {:noreply,
         %{
           state
           | channel: Channel.consumed(state.channel, size),
             bytes_out: state.bytes_out + size,
             first_answer: state.first_answer || System.monotonic_time() - state.span.started_at,
             tail: ReadyForQuery.tail(state.tail, newest_first)
         }}

      {:error, :timeout} ->
        client_gone("the client has not read for #{state.options.send_timeout} ms", state)

      {:error, _closed} ->
        client_gone(state)
    end
  end

  # `connection_failure`.
  defp client_gone(message \\ "the client is gone", state),
    do: stop(%{"severity" => "LOG", "code" => "08006", "message" => message}, state)

  defp stop(reason, state), do: {:stop, {:shutdown, {:closed, reason}}, state}

  defp close_socket(reason, state) do
    if last_words?(reason, state) do
      Transport.set(state.socket, send_timeout: @farewell_timeout)
      Transport.send(state.socket, error_response(reason))
    end

    Transport.close(state.socket)
  end

  # The program itself tells a client why its session ends, unless the client has no session yet
  # or the program has ended.
  defp last_words?(%{"severity" => "LOG"}, _state), do: false
  defp last_words?(_error, %{bytes_out: 0}), do: true

  # An ErrorResponse in the middle of another message would be read as a part of that, such as the
  # data of a row. Without parsing, two moments are known to be between messages: when the client
  # waits for an answer, and when the last bytes that it got are a ReadyForQuery.
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

  # The options with the addresses of the client's connection; none for a unix socket.
  defp addresses(socket) do
    address("peer", Transport.peer(socket)) ++ address("local", Transport.local(socket))
  end

  defp address(which, {:ok, {ip, port}}) when is_tuple(ip) do
    [
      {"#{which}_address", List.to_string(:inet.ntoa(ip))},
      {"#{which}_port", Integer.to_string(port)}
    ]
  end

  defp address(_which, _unix_or_closed), do: []

  defp peer(socket) do
    case Transport.peer(socket) do
      {:ok, peer} -> peer
      {:error, _closed} -> nil
    end
  end
end
