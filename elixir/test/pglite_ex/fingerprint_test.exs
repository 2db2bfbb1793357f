defmodule PgliteEx.FingerprintTest do
  use ExUnit.Case, async: true

  import PgliteEx.Fingerprint, only: [of: 1]

  @moduletag :tmp_dir

  defp adder(n), do: &(&1 + n)

  test "is the same for a function with the same code and values" do
    assert of(adder(1)) == of(adder(1))
    assert of(&String.upcase/1) == of(&String.upcase/1)
    assert of(adder(1)) != of(adder(2))
    assert of(&String.upcase/1) != of(&String.downcase/1)
    assert of(adder(1)) != of(&(&1 - 1))
  end

  test "does not depend on processes and references, which no other run has again" do
    capture = fn value -> fn _ -> value end end
    assert of(capture.(self())) == of(capture.(spawn(fn -> :ok end)))
    assert of(capture.(%{a: [make_ref()]})) == of(capture.(%{a: [make_ref()]}))
    assert of(capture.(%{a: 1})) != of(capture.(%{a: 2}))
    assert of(capture.(adder(1))) == of(capture.(adder(1)))
    assert of(capture.(adder(1))) != of(capture.(adder(2)))
  end

  test "is that of an expression in a shell" do
    evaluate = fn text -> text |> Code.eval_string(n: 1) |> elem(0) end
    assert of(evaluate.("&(&1 + n)")) == of(evaluate.("&(&1 + n)"))
    assert of(evaluate.("&(&1 + n)")) != of(evaluate.("&(&1 - n)"))
  end

  test "of a function of a script follows the file", %{tmp_dir: directory} do
    path = Path.join(directory, "script.exs")
    Process.register(self(), __MODULE__)

    # It is taken while the script runs, as by `prepare/4` in `test_helper.exs`.
    fingerprint = fn expression ->
      code =
        "send(#{inspect(__MODULE__)}, {:erlang.fun_info(f, :module), PgliteEx.Fingerprint.of(f)})"

      File.write!(path, "f = fn _ -> #{expression} end; #{code}; receive do: (:go -> :ok)")
      script = spawn_link(fn -> Code.compile_file(path) end)
      assert_receive {{:module, module}, fingerprint}
      {script, module, fingerprint}
    end

    {_script, module, one} = fingerprint.("make_ref()")
    # While the first one runs, its module's name is taken.
    {_script, other_module, other} = fingerprint.("make_ref()")
    assert module != other_module
    assert one == other
    assert {_script, _module, changed} = fingerprint.("node()")
    assert changed != one
  end
end
