defmodule PgliteEx.OptionsTest do
  use ExUnit.Case, async: true

  alias PgliteEx.Options

  doctest Options

  test "the defaults are a shared database on a free port of the loopback interface" do
    assert %Options{mode: :shared, listen: {{127, 0, 0, 1}, 0}, database: "postgres"} =
             Options.new!([])
  end

  for {option, value} <- [
        mode: :fast,
        name: "a string",
        database: "",
        username: "a\0b",
        listen: 5432,
        listen: {"127.0.0.1", 70_000},
        listen: {"no.such.host.invalid", 0},
        listen: {:local, "/" <> String.duplicate("x", 120)},
        after_start: &String.upcase/2,
        after_start: Migrator,
        after_start_timeout: 0,
        on_data_loss: :ignore,
        shutdown_timeout: -1,
        shutdown_timeout: :infinity,
        send_timeout: 0,
        send_timeout: :never,
        warm: -1,
        max_connections: 0,
        metrics: 9187,
        metrics: {"no.such.host.invalid", 9187},
        settings: ["work_mem=16MB"],
        settings: [work_mem: nil],
        executable: :pglite_port,
        log_level: :loud
      ] do
    test "#{option}: #{inspect(value)} is refused with the option, the value and what is allowed" do
      error =
        assert_raise ArgumentError, fn ->
          Options.new!([{unquote(option), unquote(Macro.escape(value))}])
        end

      assert error.message =~ "option #{unquote(option)}:"
      assert error.message =~ "is not allowed; it takes"
    end
  end

  test "an unknown option is refused with the ones that there are" do
    assert_raise ArgumentError, ~r/no option :pool_size; it has .*:max_connections/, fn ->
      Options.new!(pool_size: 10)
    end
  end

  test "an unknown option is refused also when its value is nil" do
    assert_raise ArgumentError, ~r/no option :pool_size/, fn -> Options.new!(pool_size: nil) end
  end

  for option <- [
        :mode,
        :listen,
        :username,
        :settings,
        :send_timeout,
        :after_start_timeout,
        :shutdown_timeout
      ] do
    test "#{option}: nil is refused, because there is always one" do
      assert_raise ArgumentError, ~r/option #{unquote(option)}: nil is not allowed/, fn ->
        Options.new!([{unquote(option), nil}])
      end
    end
  end

  test "a shared cluster that begins as a template needs the name of the database in it" do
    assert_raise ArgumentError, ~r/option database: nil .* in the template "shop"/, fn ->
      Options.new!(template: "shop")
    end

    assert %Options{template: "shop", database: "app"} =
             Options.new!(template: "shop", database: "app")
  end

  test "a data directory in isolated mode is refused, as nothing would be kept" do
    assert_raise ArgumentError, ~r/mode :isolated/, fn ->
      Options.new!(mode: :isolated, data: "/srv/data")
    end
  end

  test "a function after the start is refused in isolated mode, as nothing of it would last" do
    assert_raise ArgumentError, ~r/mode :isolated/, fn ->
      Options.new!(mode: :isolated, after_start: fn _opts -> :ok end)
    end
  end

  test "the loss of data stops the server, unless a function makes the tables again" do
    assert Options.new!([]).on_data_loss == :stop
    assert Options.new!(after_start: {Migrator, :run, []}).on_data_loss == :restart

    assert Options.new!(after_start: {Migrator, :run, []}, on_data_loss: :stop).on_data_loss ==
             :stop
  end

  test "a directory as unix socket gets the name that libpq looks for" do
    assert Options.new!(listen: {:local, "/run/app"}).listen ==
             {:local, "/run/app/.s.PGSQL.5432"}

    assert Options.new!(listen: {:local, "/run/app/.s.PGSQL.5433"}).listen ==
             {:local, "/run/app/.s.PGSQL.5433"}
  end

  test "an IPv6 host is taken as address and as text" do
    assert Options.new!(listen: {"::1", 5432}).listen == {{0, 0, 0, 0, 0, 0, 0, 1}, 5432}

    assert Options.new!(listen: {{0, 0, 0, 0, 0, 0, 0, 1}, 0}).listen ==
             {{0, 0, 0, 0, 0, 0, 0, 1}, 0}
  end
end
