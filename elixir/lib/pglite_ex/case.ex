if Code.ensure_loaded?(ExUnit.CaseTemplate) do
  defmodule PgliteEx.Case do
    @moduledoc """
    A case template: every test gets a database of its own, also with `async: true`.

        defmodule MyApp.AccountsTest do
          use PgliteEx.Case, async: true, server: MyApp.TestPostgres, repo: MyApp.Repo

          test "…" do
            MyApp.Repo.insert!(…)
          end
        end

    The server runs in `:isolated` mode, started in `test_helper.exs` or by the application; its
    template is made by `PgliteEx.prepare/4`.

    Another case template, such as the `DataCase` and the `ConnCase` of Phoenix, uses this one in its
    `using` block. Every test has its database before the first `setup`, wherever that is.

    The context of a test has `:connection_opts`, what Postgrex and Ecto take. The first
    connection made with them has a fresh clone of the template, which is gone when it closes. With
    `:pglite_gate`, `PgliteEx.Clock` sets the clock of the test's database, and `PgliteEx.Random` seeds its
    random numbers.

    With `pool_size:` a test gets a branch instead (`PgliteEx.Branch`): all connections that are made with
    these options are to one database, which is there as long as the test. For tests of a whole
    application, in which processes of any kind use the repo, see `PgliteEx.Sandbox`.

    Options:

      * `:server` – the server (required);
      * `:repo` – an Ecto repo: an instance of it with one connection to the test's database, or as many as
        `:pool_size`, is started, and is what the repo's functions use in the test's process
        (`put_dynamic_repo/1`). Other processes use the application's own instance, unless they are told
        about this one;
      * `:database` – the template to clone, if it is not the server's;
      * `:pool_size` – the test has a branch, and this is the pool size in `:connection_opts`. The server may be
        a `:shared` one then, whose cluster the branches begin as. The context has the handle as `:branch`;
      * `:on_failure` – `:drop` (default), or `:keep`: when a test fails, its database is frozen
        as a template as it is at that moment, and the command with which to look at it is printed; it
        works after the end of the tests too. With a transaction left open by the test there is nothing
        to keep; that is printed then. The last 10 databases that tests run in this directory have left
        are kept, with `{:keep, count}` as many as that; older ones are dropped.
      * `:async` and others – as for `ExUnit.Case`.
    """

    use ExUnit.CaseTemplate

    alias PgliteEx.{Branch, Gate, Parts, Server, Session, Template}

    # Each takes a few dozen megabytes of the cache.
    @kept 10

    using options do
      {own, _exunit} =
        Keyword.split(options, [:server, :repo, :database, :pool_size, :on_failure])

      quote do
        @moduletag pglite_ex: unquote(own)
        @before_compile PgliteEx.Case
      end
    end

    setup context do
      start(context)
    end

    # Before all setups, or, in a version of ExUnit that cannot be told to, in that of this template.
    @doc false
    @spec start(map) :: map
    def start(%{connection_opts: _opts}), do: %{}

    def start(context) do
      allowed = [:server, :repo, :database, :pool_size, on_failure: :drop]
      own = Keyword.validate!(context.pglite_ex, allowed)
      place = if own[:pool_size], do: start_branch(own), else: start_gate(own)
      if own[:repo], do: start_repo(own[:repo], place.connection_opts)
      place
    end

    defp start_gate(own) do
      gate = start_supervised!({Gate, server: Keyword.fetch!(own, :server)}, id: Gate)
      overrides = for database <- List.wrap(own[:database]), do: {:database, database}
      %{pglite_gate: gate, connection_opts: PgliteEx.connection_opts(gate, overrides)}
    end

    # It ends when what the test has started later has ended, such as the repo: no connection is lost.
    defp start_branch(own) do
      owner = start_supervised!(%{id: Branch, start: {Agent, :start_link, [fn -> nil end]}})
      server = Keyword.fetch!(own, :server)
      branch = PgliteEx.branch!(server, owner: owner, template: own[:database])

      %{
        branch: branch,
        connection_opts: PgliteEx.connection_opts(branch, pool_size: own[:pool_size])
      }
    end

    # The pool of the configuration may be that of Ecto's sandbox, which has nothing to do here.
    defp start_repo(repo, connection_opts) do
      settings = [name: nil, pool: DBConnection.ConnectionPool]
      pid = start_supervised!({repo, Keyword.merge(connection_opts, settings)})
      repo.put_dynamic_repo(pid)
    end

    @doc false
    defmacro __before_compile__(env) do
      tests =
        for {name, 1} <- Module.definitions_in(env.module, :def),
            String.starts_with?(Atom.to_string(name), "test "),
            do: name

      for name <- tests do
        quote do
          defoverridable [{unquote(name), 1}]

          def unquote(name)(context) do
            PgliteEx.Case.run(context, fn -> super(context) end)
          end
        end
      end ++ [before_setups(env.module)]
    end

    # ExUnit runs all setups of a test in this function, which its own `@before_compile` has defined.
    defp before_setups(module) do
      if Module.defines?(module, {:__ex_unit__, 2}) do
        quote do
          defoverridable __ex_unit__: 2

          def __ex_unit__(:setup, context),
            do: super(:setup, Map.merge(context, PgliteEx.Case.start(context)))

          def __ex_unit__(what, context), do: super(what, context)
        end
      end
    end

    @doc false
    @spec run(map, (() -> result)) :: result when result: term
    def run(%{pglite_ex: own} = context, test) do
      case own[:on_failure] do
        :keep ->
          keep_when_it_fails(context, test, @kept)

        {:keep, count} when is_integer(count) and count > 0 ->
          keep_when_it_fails(context, test, count)

        drop when drop in [:drop, nil] ->
          test.()
      end
    end

    defp keep_when_it_fails(context, test, count) do
      test.()
    catch
      kind, reason ->
        stacktrace = __STACKTRACE__
        IO.puts(keep(context, count))
        :erlang.raise(kind, reason, stacktrace)
    end

    # In the test's own process: when it has ended, its connections are gone.
    defp keep(%{pglite_ex: own} = context, count) do
      name = "failed_" <> Base.encode16(:crypto.strong_rand_bytes(4), case: :lower)

      case freeze(context, name) do
        :ok ->
          drop_all_but(own[:server], count)
          "\n" <> kept(context.test, name, count, Server.options(own[:server]))

        {:error, error} ->
          "\nThe database of \"#{context.test}\" is not kept: #{Exception.message(error)}"
      end
    end

    defp freeze(%{branch: branch}, name) do
      registry = branch |> Branch.server() |> Parts.registry!()
      settings = [frame_options: Branch.frame_options(branch)]
      Session.run(registry, branch.database, settings, &PgliteEx.freeze(&1, name, key: key()))
    end

    defp freeze(%{pglite_gate: gate}, name), do: Gate.freeze(gate, name, key())

    defp kept(test, name, count, options) do
      directory = options.cache_dir || :filename.basedir(:user_cache, "pglite-port")

      # Those with which the template is found again.
      extensions = for path <- options.extensions, do: {"extension", path}

      places =
        for {flag, path} <- [
              {"cache-dir", options.cache_dir},
              {"icu-data", options.icu_data},
              {"pglite-dir", options.pglite_dir},
              {"executable", options.executable} | extensions
            ],
            path != nil,
            do: " --#{flag} '#{String.replace(path, "'", ~S('\''))}'"

      """
      The database of "#{test}" is kept as the template #{name}.
      This command prints a URL for psql; each connection gets a copy of the database:
          MIX_ENV=test mix pglite_ex.server --mode isolated --port 0 --template #{name}#{places}
      The last #{count} databases of failed tests are kept, in #{directory}.\
      """
    end

    # Others that use the same cache have directories of their own, and their failures are theirs.
    defp key, do: "failed in #{File.cwd!()}"

    # What cannot be listed or dropped now goes after the next failure; a test that fails at the same
    # time may be faster.
    defp drop_all_but(server, count) do
      with {:ok, templates} <- Template.list(server) do
        templates
        |> Enum.filter(&(&1.key == key()))
        |> Enum.sort_by(& &1.made_at, {:desc, DateTime})
        |> Enum.drop(count)
        |> Enum.each(&Template.drop(server, &1.name))
      end
    end
  end
end
