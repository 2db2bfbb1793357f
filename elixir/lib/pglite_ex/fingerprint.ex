defmodule PgliteEx.Fingerprint do
  @moduledoc false
  # Digests of functions, by which it is noticed that a function has changed since another run of the VM.

  @doc """
  The digest of a function: of the code that it is a part of, and of the values that it has captured.

  The code is that of its module, or the file of a script, or the expression in a shell. Other modules
  that it calls are not covered. Of captured values, those that another run of the VM cannot have again
  are left out: processes, ports and references.
  """
  @spec of(function) :: binary
  def of(fun), do: :crypto.hash(:sha256, :erlang.term_to_binary(function(fun)))

  defp function(fun) do
    info = Map.new(:erlang.fun_info(fun))

    case info do
      # A captured function of a module.
      %{type: :external} -> {code(info.module), info.name, info.arity}
      %{module: :erl_eval} -> evaluated(fun)
      %{new_index: index, env: values} -> {code(info.module), index, value(values)}
    end
  end

  defp code(module) do
    case Atom.to_string(module) do
      # A script is compiled to a module whose name is not the same in every run.
      "elixir_compiler_" <> _number -> script(module)
      _name -> module.module_info(:md5)
    end
  end

  defp script(module) do
    case File.read(module.module_info(:compile)[:source]) do
      {:ok, text} -> :crypto.hash(:sha256, text)
      {:error, _posix} -> module.module_info(:md5)
    end
  end

  defp evaluated(fun) do
    case :erl_eval.fun_data(fun) do
      {:fun_data, values, clauses} -> {clauses, value(values)}
      {:named_fun_data, values, _name, clauses} -> {clauses, value(values)}
    end
  end

  defp value(fun) when is_function(fun), do: function(fun)
  defp value(place) when is_pid(place) or is_port(place) or is_reference(place), do: :a_place
  defp value([head | tail]), do: [value(head) | value(tail)]

  defp value(tuple) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> value() |> List.to_tuple()

  defp value(%{} = map), do: map |> Map.to_list() |> Enum.sort() |> value()
  defp value(term), do: term
end
