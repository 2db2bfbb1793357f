if Code.ensure_loaded?(ExUnit.CaseTemplate) do
  defmodule PgliteEx.Case do
    @moduledoc """
    A case template: every test gets a database of its own, also with `async: true`.

        defmodule MyApp.AccountsTest do
          use PgliteEx.Case, async: true, server: MyApp.TestPostgres, on_failure: :keep

          setup %{connection_opts: connection_opts} do
            repo = start_supervised!({MyApp.Repo, connection_opts ++ [name: nil]})
            MyApp.Repo.put_dynamic_repo(repo)
            :ok
          end

          test "…" do
          end
        end

    The server runs in `:isolated` mode, started in `test_helper.exs` or by the application; its
    template is made by `PgliteEx.prepare/4`.

    The context of a test has `:connection_opts`, what Postgrex and Ecto take. The first
    connection made with them has a fresh clone of the template, which is gone when it closes.

    Options:

      * `:server` – the server (required);
      * `:database` – the template to clone, if it is not the server's;
      * `:on_failure` – `:drop` (default), or `:keep`: when a test fails, its database is frozen
        as a template as it is at that moment, and the URL with which psql gets a clone
        of it is printed. With a transaction left open by the test there is nothing to keep;
        that is printed then. The last 10 databases that tests run in this directory have left
        are kept, with `{:keep, count}` as many as that; older ones are dropped.
      * `:async` and others – as for `ExUnit.Case`.
    """

    use ExUnit.CaseTemplate

    alias PgliteEx.{Gate, Template}

    # Each takes a few dozen megabytes of the cache.
    @kept 10

    using options do
      {own, _exunit} = Keyword.split(options, [:server, :database, :on_failure])

      quote do
        @moduletag pglite_ex: unquote(own)
        @before_compile PgliteEx.Case
      end
    end

    setup context do
      own = Keyword.validate!(context.pglite_ex, [:server, :database, on_failure: :drop])
      server = Keyword.fetch!(own, :server)
      gate = start_supervised!({Gate, server: server}, id: Gate)
      overrides = for database <- List.wrap(own[:database]), do: {:database, database}

      %{
        pglite_gate: gate,
        connection_opts: PgliteEx.connection_opts(gate, overrides)
      }
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
    defp keep(%{pglite_gate: gate, pglite_ex: own} = context, count) do
      name = "failed_" <> Base.encode16(:crypto.strong_rand_bytes(4), case: :lower)

      case Gate.freeze(gate, name, key()) do
        :ok ->
          drop_all_but(own[:server], count)

          "\nThe database of \"#{context.test}\" is kept: psql #{PgliteEx.url(own[:server], name)}"

        {:error, error} ->
          "\nThe database of \"#{context.test}\" is not kept: #{Exception.message(error)}"
      end
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
