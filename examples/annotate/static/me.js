// The page of one's own record.

const $ = (id) => document.getElementById(id);

function show({ blocked, record }) {
  const { claims, valid, invalid, lapses, median_seconds: seconds } = record;
  const checked = valid + invalid;
  const facts = {
    claims, valid, invalid, lapses,
    share: checked ? `${((100 * valid) / checked).toFixed(1)} %` : "–",
    seconds: seconds?.toFixed(1) ?? "–",
  };
  for (const [id, fact] of Object.entries(facts)) $(id).textContent = fact;
  $("record").hidden = false;
  $("status").textContent = blocked ? "You are shown no more images." : "";
}

const response = await fetch("/jobber/me").catch(() => null);
if (response?.status === 401) location.assign("/");
else if (response?.ok) show(await response.json());
else $("status").textContent = "The server does not answer.";
