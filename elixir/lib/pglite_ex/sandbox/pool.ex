defmodule PgliteEx.Sandbox.Pool do
  @moduledoc false
  # The pool of a repo in the sandbox, as DBConnection uses one: knows which process uses which branch.
  #
  # It serves no connections itself. A process that needs one asks it for the `PgliteEx.Sandbox.Connections` of
  # its owner, and takes it there. These are linked to this process and end with it.
  #
  # `DBConnection.Ownership` does the same for single connections; the functions here have its results and texts.

  use GenServer

  alias PgliteEx.{Branch, Parts}
  alias PgliteEx.Sandbox.{Connections, Types}

  # As of `DBConnection.Ownership`, in milliseconds.
  @ownership_timeout 120_000

  @doc """
  The specification of the pool of a repo, with the module and the options of its connections. The options may have a
  password in them, and supervisors show specifications in their reports: here and in states they are a function.
  """
  @spec child_spec({module, keyword}) :: Supervisor.child_spec()
  def child_spec({module, opts}), do: super({module, fn -> opts end})

  @doc "Starts the pool."
  @spec start_link({module, (() -> keyword)}) :: GenServer.on_start()
  def start_link({_module, opts} = argument),
    do: GenServer.start_link(__MODULE__, argument, Keyword.take(opts.(), [:name]))

  # Callbacks of `DBConnection.Pool`.

  @doc false
  def checkout(pool, callers, opts) do
    case GenServer.call(pool, {:find, callers ++ ancestors()}, :infinity) do
      {:ok, owner, connections} -> take(connections, owner, callers, opts)
      {:error, error} -> {:error, error}
    end
  end

  @doc false
  def disconnect_all(pool, _interval, _opts),
    do: Enum.each(all(pool), &Connections.disconnect_all/1)

  @doc false
  def get_connection_metrics(pool), do: Enum.map(all(pool), &Connections.metrics/1)

  # What `PgliteEx.Sandbox` offers.

  @doc "See `PgliteEx.Sandbox.checkout/2`."
  @spec own(GenServer.server(), keyword) :: :ok | {:already, :owner | :allowed}
  def own(pool, options), do: GenServer.call(pool, {:own, options}, :infinity)

  @doc "See `PgliteEx.Sandbox.checkin/2`."
  @spec disown(GenServer.server()) :: :ok | :not_owner | :not_found
  def disown(pool), do: GenServer.call(pool, :disown, :infinity)

  @doc "See `PgliteEx.Sandbox.allow/4`."
  @spec allow(GenServer.server(), pid, pid, boolean) ::
          :ok | {:already, :owner | :allowed} | :not_found
  def allow(pool, parent, pid, unallow_existing?),
    do: GenServer.call(pool, {:allow, parent, pid, unallow_existing?}, :infinity)

  @doc "See `PgliteEx.Sandbox.mode/2`."
  @spec mode(GenServer.server(), PgliteEx.Sandbox.mode()) ::
          :ok | :already_shared | :not_owner | :not_found
  def mode(pool, mode), do: GenServer.call(pool, {:mode, mode}, :infinity)

  @doc "See `PgliteEx.Sandbox.branch!/1`."
  @spec branch!(GenServer.server()) :: Branch.t()
  def branch!(pool) do
    callers = [self() | Process.get(:"$callers", [])] ++ ancestors()

    with {:ok, _owner, connections} <- GenServer.call(pool, {:find, callers}, :infinity),
         {:ok, branch} <- Connections.branch(connections) do
      branch || raise ArgumentError, "the process uses the base, which is no branch"
    else
      {:error, error} -> raise error
    end
  end

  @doc "The types of the base that branches have used; none before the first one has learnt them."
  @spec types(pid) :: [struct]
  def types(pool), do: GenServer.call(pool, :types, :infinity)

  @doc "Keeps what a branch has learnt about the types of the base (`PgliteEx.Sandbox.Types.learn/3`)."
  @spec put_types(pid, :all | :used, [struct]) :: :ok
  def put_types(pool, which, types), do: GenServer.cast(pool, {:types, which, types})

  defp all(pool), do: GenServer.call(pool, :all, :infinity)

  defp take(connections, owner, callers, opts) do
    Connections.checkout(connections, callers, opts)
  catch
    # They have ended meanwhile. Those of the base end with the pool.
    :exit, _reason when owner != nil ->
      {:error, DBConnection.ConnectionError.exception("owner #{inspect(owner)} exited")}
  end

  # Those of a process that `:proc_lib` has started: pids, or names.
  defp ancestors do
    for ancestor <- Process.get(:"$ancestors", []),
        pid = if(is_pid(ancestor), do: ancestor, else: Process.whereis(ancestor)),
        do: pid
  end

  @impl GenServer
  def init({module, opts}) do
    # So that the end of one owner's connections is not that of all others.
    Process.flag(:trap_exit, true)
    DBConnection.register_as_pool(module)
    opts = Keyword.drop(opts.(), [:name, :pool])
    server = Keyword.get(opts, :pglite_ex) || raise ArgumentError, no_server()
    hidden_opts = fn -> opts end
    isolated? = isolated?(server)
    origin = if isolated?, do: fn -> server end

    {:ok, base} =
      Connections.start_link(%{
        pool: self(),
        module: module,
        opts: hidden_opts,
        origin: origin,
        database?: isolated?
      })

    {:ok,
     %{
       module: module,
       opts: hidden_opts,
       server: server,
       isolated?: isolated?,
       # The connections in mode `:auto`.
       base: base,
       mode: Keyword.get(opts, :ownership_mode, :auto),
       # For `PgliteEx.Sandbox.Types`.
       types: Types.new(),
       # What the owners have, by their pids.
       owners: %{},
       # The owners of the processes that were allowed.
       allowed: %{}
     }}
  end

  @impl GenServer
  def handle_call({:find, callers}, _from, state), do: {:reply, find(callers, state), state}

  def handle_call(:all, _from, state) do
    owned = for {_pid, %{connections: connections}} <- state.owners, do: connections
    {:reply, Enum.uniq([state.base | owned]), state}
  end

  def handle_call(:types, _from, state), do: {:reply, Types.used(state.types), state}

  def handle_call({:own, options}, {caller, _tag}, state) do
    case role(caller, state) do
      nil -> {:reply, :ok, own(caller, options, state)}
      role -> {:reply, {:already, role}, state}
    end
  end

  def handle_call(:disown, {caller, _tag}, state) do
    case role(caller, state) do
      :owner -> {:reply, :ok, end_ownership(caller, checked_in(caller, caller), state)}
      :allowed -> {:reply, :not_owner, state}
      nil -> {:reply, :not_found, state}
    end
  end

  def handle_call({:allow, parent, pid, unallow_existing?}, _from, state) do
    owner = if is_map_key(state.owners, parent), do: parent, else: state.allowed[parent]

    case role(pid, state) do
      role when role == :owner or (role == :allowed and not unallow_existing?) ->
        {:reply, {:already, role}, state}

      _free when owner != nil ->
        {:reply, :ok, put_in(state.allowed[pid], owner)}

      _free ->
        {:reply, :not_found, state}
    end
  end

  def handle_call({:mode, {:shared, pid}}, _from, %{mode: {:shared, pid}} = state),
    do: {:reply, :ok, state}

  def handle_call({:mode, {:shared, pid} = mode}, {caller, _tag}, state) do
    case {state.mode, role(pid, state)} do
      {{:shared, current}, _role} when is_map_key(state.owners, current) ->
        # Its end may not have been noticed yet.
        if Process.alive?(current),
          do: {:reply, :already_shared, state},
          else: {:reply, :ok, share(mode, caller, state)}

      {_mode, :owner} ->
        {:reply, :ok, share(mode, caller, state)}

      {_mode, :allowed} ->
        {:reply, :not_owner, state}

      {_mode, nil} ->
        {:reply, :not_found, state}
    end
  end

  def handle_call({:mode, mode}, _from, %{mode: mode} = state), do: {:reply, :ok, state}

  def handle_call({:mode, mode}, {caller, _tag}, state),
    do: {:reply, :ok, %{end_others(nil, caller, state) | mode: mode}}

  @impl GenServer
  def handle_cast({:types, which, types}, state),
    do: {:noreply, %{state | types: Types.learn(state.types, which, types)}}

  @impl GenServer
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, state) do
    {:noreply, end_ownership(pid, {"owner #{inspect(pid)} exited", :info}, state)}
  end

  def handle_info({:owned_too_long, pid, monitor, timeout}, state) do
    case state.owners do
      %{^pid => %{monitor: ^monitor}} ->
        why =
          "owner #{inspect(pid)} timed out because it owned the connection for longer than " <>
            "#{timeout}ms (set via the :ownership_timeout option)"

        {:noreply, end_ownership(pid, {why, :error}, state)}

      _ended ->
        {:noreply, state}
    end
  end

  def handle_info({:EXIT, base, reason}, %{base: base} = state), do: {:stop, reason, state}

  def handle_info({:EXIT, pid, _reason}, state) do
    case Enum.find(state.owners, fn {_owner, %{connections: connections}} ->
           connections == pid
         end) do
      {owner, _own} -> {:noreply, forget(owner, state)}
      nil -> {:noreply, state}
    end
  end

  def handle_info(_stray_message, state), do: {:noreply, state}

  defp find(callers, state) do
    owner =
      Enum.find_value(callers, fn pid ->
        if is_map_key(state.owners, pid), do: pid, else: state.allowed[pid]
      end)

    case {owner, state.mode} do
      {nil, :auto} -> {:ok, nil, state.base}
      {nil, {:shared, shared}} -> {:ok, shared, state.owners[shared].connections}
      {nil, :manual} -> {:error, not_found(hd(callers))}
      {owner, _mode} -> {:ok, owner, state.owners[owner].connections}
    end
  end

  defp role(pid, state) do
    cond do
      is_map_key(state.owners, pid) -> :owner
      is_map_key(state.allowed, pid) -> :allowed
      true -> nil
    end
  end

  defp own(pid, options, state) do
    monitor = Process.monitor(pid)
    timeout = Keyword.get(options, :ownership_timeout, @ownership_timeout)

    if timeout != :infinity,
      do: Process.send_after(self(), {:owned_too_long, pid, monitor, timeout}, timeout)

    connections =
      if Keyword.get(options, :sandbox, true),
        do: start_connections(options[:isolation], state),
        else: state.base

    put_in(state.owners[pid], %{monitor: monitor, connections: connections})
  end

  defp start_connections(isolation, %{base: base, server: server, opts: opts} = state) do
    # What the base of an isolated server is a branch of is not what it has by now.
    origin =
      if state.isolated?,
        do: fn -> Connections.made(base) || server end,
        else: fn -> server end

    {:ok, connections} =
      Connections.start_link(%{
        pool: self(),
        module: state.module,
        opts: fn -> with_isolation(opts.(), isolation) end,
        origin: origin,
        database?: state.isolated?
      })

    connections
  end

  defp with_isolation(opts, nil), do: opts

  defp with_isolation(opts, isolation) do
    parameter = [default_transaction_isolation: String.downcase(isolation)]
    Keyword.update(opts, :parameters, parameter, &Keyword.merge(&1 || [], parameter))
  end

  defp share({:shared, pid} = mode, caller, state),
    do: %{end_others(pid, caller, state) | mode: mode}

  defp end_others(except, caller, state) do
    for pid <- Map.keys(state.owners), pid != except, reduce: state do
      state -> end_ownership(pid, checked_in(pid, caller), state)
    end
  end

  defp checked_in(owner, caller),
    do: {"#{inspect(caller)} checked in the connection owned by #{inspect(owner)}", :info}

  defp end_ownership(pid, {message, severity}, %{base: base} = state) do
    case state.owners do
      %{^pid => %{connections: ^base}} ->
        forget(pid, state)

      %{^pid => %{connections: connections}} ->
        Connections.close(connections, message, severity)
        forget(pid, state)

      _ended ->
        state
    end
  end

  defp forget(pid, state) do
    {%{monitor: monitor}, owners} = Map.pop!(state.owners, pid)
    Process.demonitor(monitor, [:flush])
    allowed = Map.reject(state.allowed, fn {_pid, owner} -> owner == pid end)
    mode = if state.mode == {:shared, pid}, do: :manual, else: state.mode
    %{state | owners: owners, allowed: allowed, mode: mode}
  end

  # A server that runs in another VM, beside which a Mix task migrates, is a shared one.
  defp isolated?(%Branch{}), do: false

  defp isolated?(server) do
    registry = Parts.registry(server)
    registry != nil and Parts.options!(registry).mode == :isolated
  end

  defp no_server do
    "the pool PgliteEx.Sandbox needs to know its server: let the init/2 of the repo return " <>
      "PgliteEx.repo_config/4, or start it with the options of PgliteEx.connection_opts/2"
  end

  defp not_found(pid) do
    DBConnection.OwnershipError.exception("""
    cannot find ownership process for #{inspect(pid)}.

    With PgliteEx.Sandbox, a process that uses the repo needs a branch. It has one:

    * when it has called PgliteEx.Sandbox.checkout/2, or the owner that
      PgliteEx.Sandbox.start_owner!/2 has started allows it;
    * when it was started by such a process as a task, or under its supervisors;
    * when PgliteEx.Sandbox.allow/4 was called for it;
    * when the sandbox is in shared mode, which is for tests that are not async.

    If this was so, its owner has ended: a test waits for the processes that it has started, or stops
    them, before it ends.
    """)
  end
end
