# A suite of tests in PgliteEx.Sandbox, beside the same one in Ecto's sandbox on native PostgreSQL, side by side in one
# run. `make bench-sandbox` runs it.
#
#     MIX_ENV=test mix run bench/sandbox.exs [--tests 1000] [--rounds 5]
#
# The program is the one of `PgliteEx.Executable`; an optimised one is named by the environment variable PGLITE_PORT.

Code.require_file("../../test/support/operating_system.ex", __DIR__)
Code.require_file("../../test/support/native_postgres.ex", __DIR__)

defmodule SandboxBench do
  import Ecto.Query

  alias Integration.{Account, BranchRepo, Post, SandboxRepo}
  alias PgliteEx.NativePostgres

  @modules 20
  # As many connections as a branch may have.
  @pool_size 4
  # As many tests as ExUnit runs at the same time, each of which has one connection.
  @native_pool_size System.schedulers_online() * 2
  # Where `make target/postgres-18/bin` puts native PostgreSQL, and its data, on the disk of the project, because the
  # temporary directory may be in memory.
  @native [
    programs: Path.expand("../../../target/postgres-18/bin", __DIR__),
    directory: Path.expand("../../../target/tmp", __DIR__)
  ]
  # What a test does, in its order.
  @phases ~w(owner first others stop)a

  @doc "What the options of the command say."
  def options do
    {options, [], []} =
      OptionParser.parse(System.argv(), strict: [tests: :integer, rounds: :integer])

    Keyword.merge([tests: 1_000, rounds: 5], options)
  end

  @doc "The tests of a module: their numbers."
  def numbers(module), do: for(n <- 1..options()[:tests], rem(n, @modules) == module, do: n)

  def modules, do: for(n <- 0..(@modules - 1), do: {Module.concat(__MODULE__, "Test#{n}"), n})

  def run do
    Logger.configure(level: :error)
    sides = start()

    try do
      for {shape, title} <- [
            one: "each test one process",
            five: "each test five processes, of which four run at the same time"
          ],
          do: compare(shape, title, sides)
    after
      Supervisor.stop(SandboxRepo)
    end
  end

  defp start do
    :ets.new(__MODULE__, [:named_table, :public, :duplicate_bag, write_concurrency: true])
    parent = self()
    event = [:pglite_ex, :server, :start]
    tell = fn _event, _measurements, %{os_pid: os_pid}, nil -> send(parent, {:os_pid, os_pid}) end
    :ok = :telemetry.attach(__MODULE__, event, tell, nil)
    {:ok, _server} = PgliteEx.start_link(name: Integration.BranchPostgres, database: "branches")
    os_pid = receive do: ({:os_pid, os_pid} -> os_pid)
    {:ok, _repo} = BranchRepo.start_link(pool_size: @pool_size)

    File.mkdir_p!(@native[:directory])
    at_exit = &System.at_exit(fn _status -> &1.() end)
    opts = NativePostgres.start!([on_exit: at_exit] ++ @native)
    own = [pool: Ecto.Adapters.SQL.Sandbox, pool_size: @native_pool_size]
    {:ok, _repo} = SandboxRepo.start_link(opts ++ own)
    file = SandboxRepo.query!("select pg_read_file('postmaster.pid')").rows
    [[postmaster | _lines]] = for [text] <- file, do: String.split(text, "\n")

    migrations = Application.app_dir(:integration, "priv/repo/migrations")
    Code.put_compiler_option(:ignore_module_conflict, true)

    for {name, repo, sandbox, os_pid} <- [
          {"PgliteEx.Sandbox", BranchRepo, PgliteEx.Sandbox, os_pid},
          {"Ecto's, PostgreSQL", SandboxRepo, Ecto.Adapters.SQL.Sandbox, postmaster}
        ] do
      Ecto.Migrator.run(repo, migrations, :up, all: true, log: false)
      sandbox.mode(repo, :manual)
      %{name: name, repo: repo, sandbox: sandbox, os_pid: os_pid}
    end
  end

  defp compare(shape, title, sides) do
    %{tests: tests, rounds: rounds} = Map.new(options())
    # So that what goes wrong is seen before, and programs are loaded.
    for side <- sides, do: round(side, shape)

    # Taken in turns, so that what else the machine does falls on both.
    samples =
      for n <- 1..rounds,
          side <- if(rem(n, 2) == 0, do: sides, else: Enum.reverse(sides)),
          do: {side.name, round(side, shape)}

    IO.puts("#{tests} async tests with ten statements, #{title} (#{rounds} rounds)")
    row("", ["the suite, s", "a test, ms", "its VM, ms", "server, ms" | @phases])

    [{ours, _}, {native, _}] =
      for %{name: name} <- sides do
        of_side = for {^name, sample} <- samples, do: sample
        whole = quartiles(for(%{wall: wall} <- of_side, do: wall / 1_000_000), 2)

        others =
          for key <- [:test, :vm, :server | @phases],
              do: quartiles(Enum.flat_map(of_side, &List.wrap(&1[key])), 2)

        row(name, for({_median, text} <- [whole | others], do: text))
        whole
      end

    IO.puts("  ratio of the medians: #{Float.round(ours / native, 2)} (aim: at most 1)\n")
  end

  # One run of all tests. Times are in milliseconds.
  defp round(%{os_pid: os_pid} = side, shape) do
    :persistent_term.put(__MODULE__, {side, shape})
    :ets.delete_all_objects(__MODULE__)
    {vm, server} = {vm_time(), server_time(os_pid)}
    modules = for {module, _n} <- modules(), do: module
    {wall, result} = :timer.tc(fn -> ExUnit.run(modules) end)
    %{failures: 0, total: total} = result
    each = &(&1 / total)

    times =
      for phase <- @phases,
          do: {phase, for({^phase, time} <- :ets.lookup(__MODULE__, phase), do: time / 1_000)}

    Map.new(times)
    |> Map.merge(%{
      wall: wall,
      test: each.(wall / 1_000),
      vm: each.(vm_time() - vm),
      server: each.(server_time(os_pid) - server)
    })
  end

  # As the generated `DataCase`.
  def setup do
    {%{repo: repo, sandbox: sandbox}, _shape} = :persistent_term.get(__MODULE__)
    owner = timed(:owner, fn -> sandbox.start_owner!(repo, shared: false) end)
    ExUnit.Callbacks.on_exit(fn -> timed(:stop, fn -> sandbox.stop_owner(owner) end) end)
  end

  # Tests of Ecto's sandbox wait for each other if they have the same unique keys; these have not.
  def test(n) do
    {%{repo: repo}, shape} = :persistent_term.get(__MODULE__)
    changeset = &Account.changeset(%Account{}, %{email: "#{&1}-#{n}@example.com"})
    account = timed(:first, fn -> repo.insert!(changeset.("first")) end)

    timed(:others, fn ->
      post = insert_post(repo, account, "first")

      together(shape, [
        fn ->
          insert_post(repo, account, "second")
          %Account{} = repo.get_by!(Account, email: account.email)
        end,
        fn ->
          repo.update!(Account.changeset(account, %{balance: 10}))
          1 = repo.aggregate(where(Account, id: ^account.id), :count)
        end,
        fn ->
          repo.insert!(changeset.("second"))

          [_ | _] =
            repo.all(from(p in Post, join: a in assoc(p, :account), where: a.id == ^account.id))
        end,
        fn ->
          {1, nil} = repo.update_all(where(Post, id: ^post.id), set: [tags: ["a", "b"]])
          %Post{tags: ["a", "b"]} = repo.get!(Post, post.id)
        end
      ])
    end)
  end

  defp insert_post(repo, account, title),
    do: repo.insert!(Post.changeset(%Post{}, %{title: title, account_id: account.id}))

  defp together(:one, functions), do: for(function <- functions, do: function.())

  defp together(:five, functions),
    do: functions |> Enum.map(&Task.async/1) |> Task.await_many(:infinity)

  defp timed(phase, function) do
    {time, result} = :timer.tc(function)
    :ets.insert(__MODULE__, {phase, time})
    result
  end

  # The processor time of this VM.
  defp vm_time, do: :runtime |> :erlang.statistics() |> elem(0)

  # That of a server, with its processes that run, and those that have ended.
  defp server_time(os_pid) do
    for directory <- Path.wildcard("/proc/[0-9]*"),
        {:ok, stat} <- [File.read(Path.join(directory, "stat"))],
        [pid, rest] = String.split(stat, " (", parts: 2),
        [_state, parent | fields] = rest |> String.split(") ") |> List.last() |> String.split(),
        "#{os_pid}" in [pid, parent],
        reduce: 0 do
      # After ten other fields: user, system, and those of children that were waited for. Ticks are of 10 ms.
      sum ->
        sum + 10 * (fields |> Enum.slice(9, 4) |> Enum.map(&String.to_integer/1) |> Enum.sum())
    end
  end

  defp quartiles(samples, decimals) do
    sorted = Enum.sort(samples)
    at = fn share -> Enum.at(sorted, round(share * (length(sorted) - 1))) / 1 end
    text = fn share -> :erlang.float_to_binary(at.(share), decimals: decimals) end
    {at.(0.5), "#{text.(0.5)} (#{text.(0.25)}–#{text.(0.75)})"}
  end

  defp row(name, cells) do
    cells = for cell <- cells, do: String.pad_leading("#{cell}", 20)
    IO.puts("  " <> String.pad_trailing(name, 18) <> Enum.join(cells))
  end
end

ExUnit.start(autorun: false, formatters: [])

for {module, n} <- SandboxBench.modules() do
  defmodule module do
    use ExUnit.Case, async: true

    setup do: SandboxBench.setup()

    for number <- SandboxBench.numbers(n),
        do: test("test #{number}", do: SandboxBench.test(unquote(number)))
  end
end

SandboxBench.run()
