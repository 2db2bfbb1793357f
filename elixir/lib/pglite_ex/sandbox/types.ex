defmodule PgliteEx.Sandbox.Types do
  @moduledoc false
  # Passes on what Postgrex has learnt about the types of one branch to further branches of the same base.
  #
  # Postgrex asks each address for the types of its database, and a branch has an address of its own. The answer
  # is the same for all branches, because they begin with the types of the base, and takes longer than the rest of a
  # connection. What a branch adds to these types later stays its own.
  #
  # A branch gets those that others have used: the base has 200, and Postgrex keeps a copy for every branch, in which
  # it looks for the encoder of each one. It asks for what it does not know.
  #
  # Postgrex has no public function for this. Without those that are used here, and with other drivers, every branch
  # is asked.

  alias Postgrex.{Protocol, TypeServer, TypeSupervisor}

  @functions [{TypeSupervisor, :locate, 2}, {TypeServer, :fetch, 1}] ++
               [{TypeServer, :update, 3}, {TypeServer, :done, 2}]

  @typedoc "The types of the base, and the identifiers of those that are used."
  @type t :: %{known: %{integer => struct}, used: MapSet.t(integer)}

  @doc "Nothing."
  @spec new() :: t
  def new, do: %{known: %{}, used: MapSet.new()}

  @doc """
  Keeps the types of a branch: `:all` those of the base, before anything was done in it, or those that it has
  `:used`.
  """
  @spec learn(t, :all | :used, [struct]) :: t
  def learn(%{known: known}, :all, [_ | _] = all) when known == %{} do
    # One is enough: Postgrex asks for all types where it has none. The first one is `bool`, which needs no other, as
    # an array needs that of its elements.
    %{known: Map.new(all, &{&1.oid, &1}), used: MapSet.new([Enum.min_by(all, & &1.oid).oid])}
  end

  # Of another one of the first branches.
  def learn(types, :all, _all), do: types

  def learn(types, :used, used) do
    # Others were made in the branch.
    of_base = for %{oid: oid} <- used, is_map_key(types.known, oid), into: types.used, do: oid
    %{types | used: of_base}
  end

  @doc "What a new branch gets."
  @spec used(t) :: [struct]
  def used(%{known: known, used: used}), do: for(oid <- used, do: Map.fetch!(known, oid))

  @doc "What is known about the types of the database that connections with these options are to; nothing is `[]`."
  @spec read(module, keyword) :: [struct]
  def read(module, opts) do
    with_table(module, opts, fn server, lock, table ->
      types = for {_oid, type, _how} <- :ets.tab2list(table), do: type
      TypeServer.done(server, lock)
      types
    end)
  end

  @doc """
  Makes these types known for connections with these options, unless some are. Returns the table in which they are,
  `nil` if there is none.
  """
  @spec write([struct], module, keyword) :: nil | :ets.tid()
  def write([], _module, _opts), do: nil

  def write(types, module, opts) do
    written =
      with_table(module, opts, fn server, lock, table ->
        if :ets.info(table, :size) == 0,
          do: TypeServer.update(server, lock, types),
          else: TypeServer.done(server, lock)

        table
      end)

    if written != [], do: written
  end

  @doc "How many types are in a table."
  @spec count(nil | :ets.tid()) :: non_neg_integer
  def count(nil), do: 0

  # The table may be gone with its type server.
  def count(table), do: with(:undefined <- :ets.info(table, :size), do: 0)

  # The calling process is linked to the type server, which ends some time after the last such process.
  defp with_table(Protocol, opts, fun) do
    with true <- Enum.all?(@functions, &exported?/1),
         server = TypeSupervisor.locate(opts[:types], key(opts)),
         {:lock, lock, {_module, table}} <- fetch(server),
         do: fun.(server, lock, table),
         else: (_another_version -> [])
  end

  defp with_table(_another_driver, _opts, _fun), do: []

  # It waits while another process asks for types, and exits when that takes too long.
  defp fetch(server) do
    TypeServer.fetch(server)
  catch
    :exit, _reason -> :unavailable
  end

  defp exported?({module, name, arity}),
    do: Code.ensure_loaded?(module) and function_exported?(module, name, arity)

  defp key(opts) do
    {host, port} =
      if opts[:socket],
        do: {{:local, opts[:socket]}, 0},
        else: {String.to_charlist(opts[:hostname]), opts[:port]}

    {host, port, opts[:database]}
  end
end
