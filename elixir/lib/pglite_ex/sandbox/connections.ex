defmodule PgliteEx.Sandbox.Connections do
  @moduledoc false
  # The connections of one branch: a pool for DBConnection that has as many as are in use at the same time.
  #
  # The branch is made when the first connection is needed, and belongs to this process. A connection is opened
  # when a process asks for one and none is idle, up to `pool_size`. `DBConnection.ConnectionPool` would open
  # all of them for every test. As that one and `DBConnection.Ownership.Proxy`, this pool is made of
  # `DBConnection.Holder`, which lends connections as tables of ETS.
  #
  # A connection that is lost or cannot be made is not tried again by itself (`backoff_type: :stop`): the
  # process that has asked for it gets its error, and the next one another connection.

  use GenServer

  alias DBConnection.{Connection, ConnectionError, Holder}
  alias PgliteEx.{Branch, Error, RepoConfig}
  alias PgliteEx.Sandbox.{Pool, Types}

  # As Ecto's.
  @pool_size 10
  # How long a process waits for a connection, in milliseconds: as long as a query of DBConnection may take.
  @queue_timeout 15_000
  # How long connections that are in use may take to close, in milliseconds.
  @close_timeout 1_000

  # Not a place of interest in a stack trace.
  @pruned [:gen, GenServer, DBConnection, Holder, Pool, __MODULE__]

  @typedoc """
  The pool of the repo; the module and the options of the connections, which are in a function because they may have a
  password in them; what the branch is made of, or `nil` for connections that the options alone lead to; whether they
  are to the database that the branch names.
  """
  @type argument :: %{
          pool: pid,
          module: module,
          opts: (() -> keyword),
          origin: nil | (() -> PgliteEx.server() | Branch.t()),
          database?: boolean
        }

  @doc "Starts the pool. It is a cheap process until the first connection is asked for."
  @spec start_link(argument) :: GenServer.on_start()
  def start_link(argument), do: GenServer.start_link(__MODULE__, argument)

  @doc """
  Takes a connection, as `c:DBConnection.Pool.checkout/3`. The timeout of the caller begins when the branch is
  there and a first connection was opened, as if these had been there before the test.
  """
  @spec checkout(pid, [pid], keyword) :: {:ok, term, module, term, term} | {:error, Exception.t()}
  def checkout(connections, callers, opts) do
    with :ok <- GenServer.call(connections, :await_ready, :infinity),
         do: Holder.checkout(connections, callers, opts)
  end

  @doc "The branch, which is made if it is not there yet; `nil` if the options alone lead to the connections."
  @spec branch(pid) :: {:ok, nil | Branch.t()} | {:error, Exception.t()}
  def branch(connections), do: GenServer.call(connections, :branch, :infinity)

  @doc "The branch, if it was made."
  @spec made(pid) :: nil | Branch.t()
  def made(connections), do: GenServer.call(connections, :made, :infinity)

  @doc """
  Ends the pool and its branch. Processes that wait for a connection get an error with this message; a connection
  that is in use is closed, and that is logged.
  """
  @spec close(pid, String.t(), Logger.level()) :: :ok
  def close(connections, message, severity),
    do: GenServer.cast(connections, {:close, message, severity})

  @doc "Closes all connections that are there now, those in use when they are given back."
  @spec disconnect_all(pid) :: :ok
  def disconnect_all(connections), do: GenServer.call(connections, :disconnect_all, :infinity)

  @doc "How many connections are idle, and how many processes wait for one."
  @spec metrics(pid) :: map
  def metrics(connections), do: GenServer.call(connections, :metrics, :infinity)

  @impl GenServer
  def init(argument) do
    # So that the end of a connection is not that of all others.
    Process.flag(:trap_exit, true)

    {:ok,
     %{
       pool: argument.pool,
       module: argument.module,
       opts: argument.opts,
       origin: argument.origin,
       database?: argument.database?,
       # `{:ok, branch}`, or the error with which it could not be made; `nil` before.
       branch: if(argument.origin == nil, do: {:ok, nil}),
       size: Keyword.get(argument.opts.(), :pool_size) || @pool_size,
       # In messages about what was lent by this process.
       tag: make_ref(),
       # The processes of connections, and whether they have connected.
       connections: %{},
       # Whether the first one asks for the types of the database.
       learns?: false,
       # Where those are that the branch was given, and how many they were.
       types: nil,
       # Whether one was opened, and the callers that wait for that.
       ready?: false,
       awaiting: [],
       # Idle connections, the one that was used last first.
       idle: [],
       # Those that were lent, and the processes that have them.
       busy: %{},
       # Processes that wait, in their order, with references of their own.
       waiting: :queue.new(),
       # Those of them that are closed when they are given back.
       stale: MapSet.new(),
       # While the pool ends: its error, and how many connections are to close.
       closing: nil
     }}
  end

  @impl GenServer
  def handle_call(:branch, _from, state) do
    state = make(state)
    {:reply, state.branch, state}
  end

  def handle_call(:await_ready, from, state) do
    case make(state) do
      %{closing: {error, _count}} = state -> {:reply, {:error, error}, state}
      %{branch: {:error, error}} = state -> {:reply, {:error, error}, state}
      %{ready?: true} = state -> {:reply, :ok, state}
      state -> {:noreply, grow(%{state | awaiting: [from | state.awaiting]})}
    end
  end

  def handle_call(:made, _from, state) do
    made = with {:ok, branch} <- state.branch, do: branch, else: (_not_made -> nil)
    {:reply, made, state}
  end

  def handle_call(:disconnect_all, _from, state) do
    for holder <- state.idle, do: Holder.handle_disconnect(holder, disconnected())
    {:reply, :ok, %{state | idle: [], stale: state.busy |> Map.keys() |> MapSet.new()}}
  end

  def handle_call(:metrics, _from, state) do
    metrics = %{
      source: {:pool, self()},
      ready_conn_count: length(state.idle),
      checkout_queue_length: :queue.len(state.waiting)
    }

    {:reply, metrics, state}
  end

  @impl GenServer
  def handle_cast({:close, message, severity}, state) do
    pass_on_types(state)
    error = ConnectionError.exception(message)
    for {_reference, from} <- :queue.to_list(state.waiting), do: Holder.reply_error(from, error)
    state = tell_awaiting({:error, error}, state)

    closing =
      Enum.count(state.busy, fn {holder, client} ->
        Holder.handle_disconnect(holder, still_used(message, client, severity))
      end)

    Process.send_after(self(), :close_timeout, @close_timeout)
    state = %{state | waiting: :queue.new(), busy: %{}, closing: {error, closing}}
    end_when_closed(state)
  end

  @impl GenServer
  def handle_info({:db_connection, from, {:checkout, _callers, _now, queue?}}, state) do
    case state do
      %{closing: {error, _count}} -> refuse(from, error, state)
      %{idle: [holder | idle]} -> {:noreply, lend(holder, from, %{state | idle: idle})}
      _none_idle when queue? -> {:noreply, state |> wait(from) |> grow()}
      _none_idle -> refuse(from, ConnectionError.exception(no_queue()), state)
    end
  end

  # A process has ended with the connection that it had.
  def handle_info({:"ETS-TRANSFER", holder, client, tag}, %{tag: tag} = state) do
    message = "client #{inspect(client)} exited"
    Holder.handle_disconnect(holder, ConnectionError.exception(message: message, severity: :info))
    {:noreply, take_back(holder, state)}
  end

  def handle_info({:"ETS-TRANSFER", holder, giver, {what, tag, extra}}, %{tag: tag} = state) do
    stale? = MapSet.member?(state.stale, holder)
    state = take_back(holder, state)

    # A connection gives itself when it has connected.
    state = if is_map_key(state.connections, giver), do: connected(giver, state), else: state

    case what do
      :checkin when stale? ->
        Holder.handle_disconnect(holder, disconnected())
        {:noreply, state}

      :checkin ->
        {:noreply, given_back(holder, state)}

      :disconnect ->
        Holder.handle_disconnect(holder, extra)
        {:noreply, state}

      :stop ->
        Holder.handle_stop(holder, extra)
        {:noreply, state}
    end
  end

  def handle_info({:timeout, deadline, {tag, holder, client, time}}, %{tag: tag} = state) do
    if Holder.handle_deadline(holder, deadline) do
      message =
        "client #{inspect(client)} timed out because it queued and checked out the connection for " <>
          "longer than #{time}ms" <>
          location(client, "\n\n#{inspect(client)} was at location:\n\n")

      Holder.handle_disconnect(holder, ConnectionError.exception(message))
      {:noreply, take_back(holder, state)}
    else
      {:noreply, state}
    end
  end

  def handle_info({:late, reference}, state) do
    {late, waiting} =
      state.waiting |> :queue.to_list() |> Enum.split_with(&(elem(&1, 0) == reference))

    for {_reference, from} <- late,
        do: Holder.reply_error(from, ConnectionError.exception(too_late(state), :queue_timeout))

    {:noreply, %{state | waiting: :queue.from_list(waiting)}}
  end

  def handle_info({:EXIT, pid, reason}, state) do
    {connected, connections} = Map.pop(state.connections, pid)
    state = %{state | connections: connections}

    cond do
      state.closing -> end_when_closed(count_down(state))
      connected == :connecting -> {:noreply, state |> not_connected(reason) |> grow()}
      true -> {:noreply, grow(state)}
    end
  end

  def handle_info(:close_timeout, state),
    do: end_when_closed(%{state | closing: {elem(state.closing, 0), 0}})

  def handle_info(_stray_message, state), do: {:noreply, state}

  defp make(%{branch: nil, origin: origin} = state) do
    origin = origin.()

    case PgliteEx.branch(origin) do
      {:ok, branch} ->
        opts = opts(branch, state)
        types = Pool.types(state.pool)
        table = Types.write(types, state.module, opts)

        %{
          state
          | branch: {:ok, branch},
            opts: fn -> opts end,
            learns?: types == [],
            types: {table, length(types)}
        }

      {:error, error} ->
        %{state | branch: {:error, not_made(Exception.message(error))}}
    end
  rescue
    error in Error -> %{state | branch: {:error, not_made(Exception.message(error))}}
  catch
    :exit, {:noproc, _call} ->
      %{state | branch: {:error, not_made(RepoConfig.no_server(state.opts.()[:pglite_ex]))}}
  end

  defp make(state), do: state

  defp not_made(message), do: ConnectionError.exception("no branch could be made: " <> message)

  # A repo may use another database of the server's cluster than the server's options name. The template of an
  # isolated server knows its database.
  defp opts(branch, %{opts: opts, database?: database?}) do
    others = if database?, do: [:username], else: [:username, :database]
    own = branch |> PgliteEx.connection_opts() |> Keyword.drop(others)
    # As a driver does that starts the pool itself.
    for {key, value} <- Keyword.merge(opts.(), own), value != nil, do: {key, value}
  end

  defp connected(pid, state) do
    # Nothing else has been done in the branch yet.
    if state.learns?,
      do: Pool.put_types(state.pool, :all, Types.read(state.module, state.opts.()))

    state = %{state | ready?: true, learns?: false}
    tell_awaiting(:ok, put_in(state.connections[pid], :connected))
  end

  # What Postgrex has asked for in this branch the following ones get. While a process uses a connection it may still
  # be asking, and nothing is to wait for that.
  defp pass_on_types(%{types: {table, given}, busy: busy} = state) when busy == %{} do
    if Types.count(table) > given,
      do: Pool.put_types(state.pool, :used, Types.read(state.module, state.opts.()))
  end

  defp pass_on_types(_no_types_or_busy), do: :ok

  defp tell_awaiting(what, state) do
    for from <- state.awaiting, do: GenServer.reply(from, what)
    %{state | awaiting: []}
  end

  defp wait(state, from) do
    reference = make_ref()
    Process.send_after(self(), {:late, reference}, @queue_timeout)
    %{state | waiting: :queue.in({reference, from}, state.waiting)}
  end

  # Opens a connection for a process that waits, unless one is being opened for it.
  defp grow(%{connections: connections} = state) do
    opening = Enum.count(connections, fn {_pid, what} -> what == :connecting end)

    wanted = :queue.len(state.waiting) + min(length(state.awaiting), 1)

    if wanted > opening and map_size(connections) < state.size do
      own = [pool_index: map_size(connections) + 1, backoff_type: :stop]
      opts = Keyword.merge(state.opts.(), own)
      {:ok, pid} = Connection.start_link(state.module, opts, self(), state.tag)
      %{state | connections: Map.put(connections, pid, :connecting)}
    else
      state
    end
  end

  # The process that has waited longest gets the reason; each has made one connection be opened. All that wait
  # for the first connection get it.
  defp not_connected(state, reason) do
    state = tell_awaiting({:error, connect_error(reason)}, state)

    case :queue.out(state.waiting) do
      {{:value, {_reference, from}}, waiting} ->
        Holder.reply_error(from, connect_error(reason))
        %{state | waiting: waiting}

      {:empty, _waiting} ->
        state
    end
  end

  defp connect_error({%{__exception__: true} = error, _stacktrace}), do: error
  defp connect_error({:shutdown, %{__exception__: true} = error}), do: error

  defp connect_error(reason),
    do:
      ConnectionError.exception("no connection could be made: " <> Exception.format_exit(reason))

  defp lend(holder, {client, _lock} = from, state) do
    # A client that has ended meanwhile gets none.
    if Holder.handle_checkout(holder, from, state.tag, nil),
      do: put_in(state.busy[holder], client),
      else: given_back(holder, state)
  end

  defp take_back(holder, %{busy: busy, stale: stale} = state),
    do: %{state | busy: Map.delete(busy, holder), stale: MapSet.delete(stale, holder)}

  defp disconnected,
    do: ConnectionError.exception(message: "disconnect_all requested", severity: :debug)

  defp given_back(holder, %{closing: {error, _count}} = state) do
    Holder.handle_disconnect(holder, error)
    state
  end

  defp given_back(holder, state) do
    # Otherwise its time was over before it came.
    if :ets.info(holder, :owner) == self(), do: next(holder, state), else: state
  end

  defp next(holder, state) do
    case :queue.out(state.waiting) do
      {{:value, {_reference, from}}, waiting} -> lend(holder, from, %{state | waiting: waiting})
      {:empty, _waiting} -> %{state | idle: [holder | state.idle]}
    end
  end

  defp refuse(from, error, state) do
    Holder.reply_error(from, error)
    {:noreply, state}
  end

  defp count_down(%{closing: {error, count}} = state), do: %{state | closing: {error, count - 1}}

  # The branch belongs to this process. Connections that are idle are killed: when asked to end, Postgrex connects once
  # more for each of them, to cancel what it does.
  defp end_when_closed(%{closing: {error, count}} = state) when count <= 0 do
    for {pid, _what} <- state.connections, do: Process.exit(pid, :kill)
    {:stop, {:shutdown, error}, state}
  end

  defp end_when_closed(state), do: {:noreply, state}

  defp still_used(message, client, severity) do
    message =
      message <>
        location(client, "\n\nClient #{inspect(client)} is still using it at location:\n\n")

    ConnectionError.exception(message: message, severity: severity)
  end

  defp location(client, text) do
    with {:current_stacktrace, stacktrace} <- Process.info(client, :current_stacktrace),
         [_place | _] = stacktrace <-
           Enum.drop_while(stacktrace, fn {module, _, _, _} -> module in @pruned end),
         do: text <> Exception.format_stacktrace(stacktrace),
         else: (_ended -> "")
  end

  defp no_queue, do: "connection not available and queuing is disabled"

  defp too_late(state) do
    "connection not available and request was dropped from queue after #{@queue_timeout}ms. The " <>
      "branch has #{state.size} connections (:pool_size), and all were in use"
  end
end
