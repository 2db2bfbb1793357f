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
        that is printed then.
      * `:async` and others – as for `ExUnit.Case`.
    """

    use ExUnit.CaseTemplate

    alias PgliteEx.Gate

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
      if own[:on_failure] == :keep, do: keep_when_it_fails(context, test), else: test.()
    end

    defp keep_when_it_fails(context, test) do
      test.()
    catch
      kind, reason ->
        stacktrace = __STACKTRACE__
        IO.puts(keep(context))
        :erlang.raise(kind, reason, stacktrace)
    end

    # In the test's own process: when it has ended, its connections are gone.
    defp keep(%{pglite_gate: gate, pglite_ex: own} = context) do
      name = "failed_" <> Base.encode16(:crypto.strong_rand_bytes(4), case: :lower)

      case Gate.freeze(gate, name) do
        :ok ->
          "\nThe database of \"#{context.test}\" is kept: psql #{PgliteEx.url(own[:server], name)}"

        {:error, error} ->
          "\nThe database of \"#{context.test}\" is not kept: #{Exception.message(error)}"
      end
    end
  end
end
