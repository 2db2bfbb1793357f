defmodule PgliteEx.Parts do
  @moduledoc false
  # The processes of one server or gate by their part: a `Registry`, the first child of its supervisor.
  #
  # A supervisor answers nothing while it starts or stops a child; a registry answers at any time.
  # The name of a registry is an atom, and atoms are never freed. A supervisor without a local name
  # therefore takes the first free number as its name, so there are never more names than servers
  # and gates that ran at the same time.

  alias PgliteEx.Options

  # How long a registry of the same name may take to end, in milliseconds: that of a server that
  # was killed and is started anew.
  @predecessor_timeout 5_000

  @doc """
  Returns the name of the calling supervisor's registry, which follows from its own local name.
  """
  @spec claim_name() :: Registry.registry()
  def claim_name do
    case Process.info(self(), :registered_name) do
      {:registered_name, []} -> claim_number(1)
      {:registered_name, name} -> registry_name(name)
    end
  end

  @spec child_spec({Registry.registry(), Options.t()}) :: Supervisor.child_spec()
  def child_spec(argument),
    do: %{id: __MODULE__, start: {__MODULE__, :start_link, [argument]}, type: :supervisor}

  @doc "Starts a registry, which also keeps the options of its server or gate."
  @spec start_link({Registry.registry(), Options.t()}) :: {:ok, pid} | {:error, term}
  def start_link({registry, %Options{} = options} = argument) do
    settings = [keys: :unique, name: registry, meta: [options: options]]

    with {:error, {:already_started, predecessor} = reason} <- Registry.start_link(settings) do
      monitor = Process.monitor(predecessor)

      receive do
        {:DOWN, ^monitor, :process, _pid, _reason} -> start_link(argument)
      after
        @predecessor_timeout ->
          Process.demonitor(monitor, [:flush])
          {:error, reason}
      end
    end
  end

  @doc """
  The registry of a server or a gate, given as its pid or name; `nil` when it does not run.

  Raises `ArgumentError` for one on another node.
  """
  @spec registry(PgliteEx.server()) :: Registry.registry() | nil
  def registry(server) do
    case GenServer.whereis(server) do
      pid when is_pid(pid) and node(pid) == node() ->
        with {:registered_name, name} when name != [] <- Process.info(pid, :registered_name),
             do: registry_name(name),
             else: (_no_server -> nil)

      nil ->
        nil

      _other_node ->
        raise ArgumentError, "the server #{inspect(server)} can be used on its own node only"
    end
  end

  @doc "The registry of a server or a gate. The caller exits with `:noproc` when it does not run."
  @spec registry!(PgliteEx.server()) :: Registry.registry()
  def registry!(server),
    do: registry(server) || exit({:noproc, {__MODULE__, :registry!, [server]}})

  @doc "The name under which the process of a part is started."
  @spec name(Registry.registry(), module) :: GenServer.name()
  def name(registry, part), do: {:via, Registry, {registry, part}}

  @doc "The process of a part; `nil` while there is none."
  @spec whereis(Registry.registry(), module) :: pid | nil
  def whereis(registry, part) do
    case Registry.whereis_name({registry, part}) do
      :undefined -> nil
      pid -> pid
    end
  rescue
    # The registry itself has ended.
    ArgumentError -> nil
  end

  @doc "The options with which the server or gate was started."
  @spec options!(Registry.registry()) :: Options.t()
  def options!(registry) do
    {:ok, options} = Registry.meta(registry, :options)
    options
  rescue
    ArgumentError -> exit({:noproc, {__MODULE__, :options!, [registry]}})
  end

  defp claim_number(number) do
    name = Module.concat(__MODULE__, "Owner#{number}")

    # A registry may outlive its killed supervisor for a moment.
    if Process.whereis(name) == nil and Process.whereis(registry_name(name)) == nil and
         register(name),
       do: registry_name(name),
       else: claim_number(number + 1)
  end

  defp register(name) do
    Process.register(self(), name)
  rescue
    # Another supervisor was faster.
    ArgumentError -> false
  end

  defp registry_name(name), do: Module.concat(name, __MODULE__)
end
