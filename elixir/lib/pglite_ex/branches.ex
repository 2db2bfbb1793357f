defmodule PgliteEx.Branches do
  @moduledoc false
  # Makes and drops the branches of a server, and drops those whose owners have ended.
  #
  # The requests to the program are made by processes of their own, because some take long: this process waits
  # for none of them. A branch is made here rather than by the calling process, so that it is dropped also
  # when its owner ends while it is being made.
  #
  # This process outlives the program. The branches are gone when that has ended; their gates stay open until
  # their owners end, so that clients are told.
  #
  # The names of the branches that were made or are being made are kept in the registry as well: when this
  # process has crashed, the one that takes its place drops them, because it knows nothing of their owners.

  use GenServer

  require Logger

  alias PgliteEx.{Branch, Channel, Error, Gate, Options, Parts, WasmPort}

  @typedoc "The registry and the options of the server."
  @type context :: %{registry: Registry.registry(), options: Options.t()}

  @typedoc """
  To make a branch of that name with the options of a request, for an owner; to drop one; to open a gate
  for one.
  """
  @type request ::
          {:create, String.t(), PgliteEx.Frame.options(), pid | :none}
          | {:drop, String.t()}
          | {:gate, Branch.t()}

  # How long the drop of one branch that was left may take, in milliseconds: longer than the program waits for its
  # sessions.
  @drop_timeout 15_000
  # Added to the number in the name of a unix socket, for those of gates beside it.
  @gate_offset 20_000
  # How many names of unix sockets are tried for a gate, which other programs may have taken.
  @gate_attempts 100

  @doc "Starts the process of the server with this registry."
  @spec start_link(context) :: GenServer.on_start()
  def start_link(%{registry: registry} = context),
    do: GenServer.start_link(__MODULE__, context, name: Parts.name(registry, __MODULE__))

  @doc """
  The supervisor of this process and of the gates, which end with it. A failure here restarts nothing else of
  the server.
  """
  @spec supervisor_spec(context) :: Supervisor.child_spec()
  def supervisor_spec(%{registry: registry} = context) do
    gates = [strategy: :one_for_one, name: Parts.name(registry, Gate)]
    children = [{__MODULE__, context}, {DynamicSupervisor, gates}]

    %{
      id: __MODULE__,
      start: {Supervisor, :start_link, [children, [strategy: :rest_for_one]]},
      type: :supervisor
    }
  end

  @doc """
  Makes a request. The result of `:create` is the name of the database in the branch, that of `:gate` the
  gate.
  """
  @spec ask(pid, request) :: {:ok, term} | {:error, Error.t()}
  def ask(branches, request) do
    GenServer.call(branches, request, :infinity)
  catch
    :exit, _program_gone -> {:error, Error.from_reason(Channel.program_gone())}
  end

  @impl GenServer
  def init(context) do
    # So that the results of the processes that make requests are received.
    Process.flag(:trap_exit, true)

    state = %{
      context: context,
      # Their owners' monitors and their gates, by name.
      branches: %{},
      # The names by the owners' monitors.
      owners: %{},
      # What the processes do that make requests.
      workers: %{},
      # How many gates were opened.
      gates: 0
    }

    {:ok, state, {:continue, :drop_left}}
  end

  # Before any other request, so that a branch which is made now is not taken for one of the same name that was left.
  @impl GenServer
  def handle_continue(:drop_left, %{context: %{registry: registry, options: options}} = state) do
    wasm_port = Parts.whereis(registry, WasmPort)

    for name <- left(registry), wasm_port != nil do
      # What is not there any more needs no drop.
      WasmPort.request(wasm_port, "drop_cluster", [{"name", name}],
        timeout: @drop_timeout,
        server: options.name
      )
    end

    put_left(registry, [])
    {:noreply, state}
  end

  @impl GenServer
  def handle_call({:create, name, options, owner}, from, state) do
    monitor = if is_pid(owner), do: Process.monitor(owner)
    state = if monitor, do: put_in(state.owners[monitor], name), else: state
    left_if_crashed(state, name)
    {:noreply, work(state, "create_cluster", options, {:create, name, monitor, from})}
  end

  def handle_call({:drop, name}, from, state) do
    {:noreply, state |> forget(name) |> drop(name, from)}
  end

  def handle_call({:gate, %Branch{name: name} = branch}, _from, state) do
    case state.branches do
      %{^name => %{gate: nil}} -> open_gate(branch, state)
      %{^name => %{gate: gate}} -> {:reply, {:ok, gate}, state}
      _not_there -> {:reply, {:error, Branch.unknown(name)}, state}
    end
  end

  @impl GenServer
  def handle_info({:DOWN, monitor, :process, _owner, _reason}, state) do
    {name, owners} = Map.pop(state.owners, monitor)
    state = %{state | owners: owners}

    # One that is just being made is dropped when it is there.
    if is_map_key(state.branches, name),
      do: {:noreply, state |> forget(name) |> drop(name, nil)},
      else: {:noreply, state}
  end

  def handle_info({:EXIT, pid, reason}, state) do
    case Map.pop(state.workers, pid) do
      {nil, _workers} -> {:stop, reason, state}
      {task, workers} -> {:noreply, done(task, result(reason), %{state | workers: workers})}
    end
  end

  def handle_info(_stray_message, state), do: {:noreply, state}

  defp done({:create, name, monitor, from}, {:ok, reply}, state) do
    owned? = monitor == nil or is_map_key(state.owners, monitor)
    # One of the same name was lost with a program that has ended.
    state = forget(state, name)
    state = put_in(state.branches[name], %{monitor: monitor, gate: nil})
    {"database", database} = List.keyfind(reply, "database", 0)
    GenServer.reply(from, {:ok, database})
    if owned?, do: state, else: state |> forget(name) |> drop(name, nil)
  end

  defp done({:create, name, monitor, from}, {:error, error}, state) do
    no_longer_left(state, name)
    GenServer.reply(from, {:error, error})
    if monitor, do: Process.demonitor(monitor, [:flush])
    %{state | owners: Map.delete(state.owners, monitor)}
  end

  defp done({:drop, name, from}, result, state) when from != nil do
    no_longer_left(state, name)
    GenServer.reply(from, result)
    state
  end

  defp done({:drop, name, nil}, {:error, %Error{} = error}, state) do
    no_longer_left(state, name)

    # Another request may have dropped it.
    unless error.code in ["3D000", "57P01"] do
      text = "the branch #{name} of a process that has ended is not dropped: "

      Logger.warning(text <> Exception.message(error),
        domain: [:pglite_ex],
        server: state.context.options.name
      )
    end

    state
  end

  defp done({:drop, name, nil}, {:ok, _reply}, state) do
    no_longer_left(state, name)
    state
  end

  # The names of the branches that are dropped if this process crashes.
  defp left(registry) do
    case Registry.meta(registry, __MODULE__) do
      {:ok, names} -> names
      :error -> []
    end
  end

  defp put_left(registry, names), do: :ok = Registry.put_meta(registry, __MODULE__, names)

  defp left_if_crashed(%{context: %{registry: registry}}, name),
    do: put_left(registry, [name | left(registry)])

  defp no_longer_left(%{context: %{registry: registry}}, name),
    do: put_left(registry, List.delete(left(registry), name))

  defp result({:shutdown, {__MODULE__, result}}), do: result
  # Killed.
  defp result(_reason), do: {:error, Error.from_reason(Channel.program_gone())}

  defp forget(state, name) do
    case Map.pop(state.branches, name) do
      {nil, _branches} ->
        state

      {%{monitor: monitor, gate: gate}, branches} ->
        if monitor, do: Process.demonitor(monitor, [:flush])
        if gate, do: close_gate(gate, state)
        %{state | branches: branches, owners: Map.delete(state.owners, monitor)}
    end
  end

  defp drop(state, name, from),
    do: work(state, "drop_cluster", [{"name", name}], {:drop, name, from})

  defp work(%{context: %{registry: registry, options: options}} = state, verb, asked, task) do
    wasm_port = Parts.whereis(registry, WasmPort)
    settings = [timeout: :infinity, server: options.name]

    worker =
      spawn_link(fn ->
        result = WasmPort.request(wasm_port, verb, asked, settings)
        exit({:shutdown, {__MODULE__, result}})
      end)

    put_in(state.workers[worker], task)
  end

  defp open_gate(%Branch{name: name} = branch, %{context: context} = state) do
    number = state.gates + 1
    gates = Parts.whereis(context.registry, Gate)

    case start_gate(gates, branch, context.options.listen, number, @gate_attempts) do
      {:ok, number, gate} ->
        state = put_in(state.branches[name].gate, gate)
        {:reply, {:ok, gate}, %{state | gates: number}}

      {:error, reason} ->
        {:reply, {:error, gate_error(reason)}, state}
    end
  end

  # The system has a free port for every gate, but no free name for a unix socket.
  defp start_gate(gates, branch, place, number, attempts) do
    case start_gate(gates, branch, gate_place(place, number)) do
      {:ok, gate} ->
        {:ok, number, gate}

      {:error, %Error{code: :eaddrinuse}} when attempts > 1 ->
        start_gate(gates, branch, place, number + 1, attempts - 1)

      {:error, reason} ->
        {:error, reason}
    end
  end

  # As reachable as the server is, and no more: there are no passwords.
  #
  # No two branches have the same place, one after the other neither: Postgrex keeps the types of a host, port
  # and database for minutes after the last connection. All addresses 127.x.x.x are those of the loopback interface.
  defp gate_place({:local, path}, number) do
    ".s.PGSQL." <> own = Path.basename(path)
    number = rem(String.to_integer(own) + @gate_offset + number, 65_536)
    {:local, Path.join(Path.dirname(path), ".s.PGSQL.#{number}")}
  end

  defp gate_place({host, _port}, _number) when tuple_size(host) == 8,
    do: {{0, 0, 0, 0, 0, 0, 0, 1}, 0}

  defp gate_place({_host, _port}, _number) do
    <<a, b, c>> = <<System.unique_integer([:positive]) + 256::24>>
    {{127, a, b, c}, 0}
  end

  defp start_gate(gates, branch, listen) do
    child = %{
      id: Gate,
      start: {Gate, :start_link, [branch, listen, :started]},
      restart: :temporary,
      type: :supervisor
    }

    with {:error, {:shutdown, {:failed_to_start_child, _child, reason}}} <-
           DynamicSupervisor.start_child(gates, child),
         do: {:error, reason}
  end

  defp close_gate(gate, %{context: context}) do
    gates = Parts.whereis(context.registry, Gate)
    # In a process of its own, because it waits for the gate's connections.
    spawn(fn -> DynamicSupervisor.terminate_child(gates, gate) end)
  end

  defp gate_error(%Error{} = error), do: error

  defp gate_error(reason),
    do: %Error{code: :eaddrinuse, message: "no gate for a branch: #{inspect(reason)}"}
end
