"""Telegram: people write to a bot, and it answers. Long polling, so that TELEGRAM_BOT_TOKEN alone is enough.

An update is confirmed to Telegram by the next poll, and so only once it is durable here; what comes twice has the same key.
The Bot API has no way to send a message once for certain, so one whose answer was lost counts as doubtful.
What it leaves out: files and voice, inline queries, channels.
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from integrations import Connection, Context, Doubtful, Inbound, Integration, Reply, Unavailable, Undeliverable
from integrations._parts import split, utf16

if TYPE_CHECKING:
    from integrations._bot_api import BotApi

logger = logging.getLogger(__name__)

LONGEST = 4096
"""UTF-16 code units of one message. Source: sendMessage in the Bot API."""

POLL_SECONDS = 50
"""Seconds that Telegram holds a poll open when there is nothing."""

IDLE_SECONDS = 0.5
"""Seconds until the next poll when one comes back at once with nothing, as from servers that do not hold it."""

LONGEST_QUOTE = 1_000
"""Characters of the message that somebody replies to that are shown to the agent."""

REFUSAL_SECONDS = 3600.0
MOST_REFUSALS = 30
"""A stranger is answered once in that many seconds, and so many strangers are at the most: anybody can find a bot."""

HELLO = "Hello. Write to me what you want done; I answer when it is. /stop ends what I am doing."
NO_EDITS = "I do not see changes to messages I have read; please send it again as a new one."
NO_FILES = "I can read text only. I have not seen the {kind}; please describe it in words."
NOTHING_TO_STOP = "There is nothing to stop."
STRANGER = (
    "This bot answers only people its owner knows. Your Telegram id is {user}; the owner can allow it with TELEGRAM_ALLOWED_USERS={user}."
)

_COMMAND = re.compile(r"/([A-Za-z0-9_]+)(?:@(\w+))?(?=\s|$)")


class User(msgspec.Struct):
    id: int
    is_bot: bool = False
    first_name: str = ""
    username: str | None = None


class Chat(msgspec.Struct):
    id: int
    type: str = "private"
    username: str | None = None


class Entity(msgspec.Struct):
    type: str
    user: User | None = None


class Message(msgspec.Struct):
    """A message, as far as it is read. What is attached may be anything: only that it is there counts."""

    message_id: int
    chat: Chat
    sender: User | None = msgspec.field(name="from", default=None)
    text: str = ""
    caption: str = ""
    entities: list[Entity] = []
    caption_entities: list[Entity] = []
    reply_to_message: "Message | None" = None
    message_thread_id: int | None = None
    is_topic_message: bool = False
    media_group_id: str | None = None
    photo: Any = None
    document: Any = None
    voice: Any = None
    audio: Any = None
    video: Any = None
    video_note: Any = None
    animation: Any = None
    sticker: Any = None
    location: Any = None
    contact: Any = None

    @property
    def words(self) -> str:
        return (self.text or self.caption).strip()

    @property
    def attachment(self) -> str | None:
        """What comes with it, in a word."""
        for kind in ("photo", "voice", "audio", "video_note", "video", "animation", "document", "sticker", "location", "contact"):
            if getattr(self, kind) is not None:
                return kind.partition("_")[0]
        return None

    @property
    def is_private(self) -> bool:
        return self.chat.type == "private"


class Update(msgspec.Struct):
    update_id: int
    message: Message | None = None
    edited_message: Message | None = None


class _Number(msgspec.Struct):
    update_id: int


class Telegram(Connection):
    """One bot. `me` is who it is there."""

    def __init__(self, api: "BotApi", me: User, context: Context) -> None:
        self._api = api
        self._me = me
        self._context = context
        self.account = f"as @{me.username}"
        self._users = _allowed(context.environ.get("TELEGRAM_ALLOWED_USERS", ""))
        self._chats = _allowed(context.environ.get("TELEGRAM_ALLOWED_CHATS", ""))
        self._mention = re.compile(rf"(?<!\w)@{re.escape(me.username or '-')}\b", re.I)
        self._offset = 0
        self._is_steady = True
        self._refused: OrderedDict[int, float] = OrderedDict()

    async def receive(self) -> None:
        began = time.monotonic()
        wait = POLL_SECONDS if self._is_steady else 0  # after a failure the next answer tells whether it is over
        self._is_steady = False
        asked = {"timeout": wait, "allowed_updates": ["message", "edited_message"], **({"offset": self._offset} if self._offset else {})}
        try:
            result = await self._api.call("getUpdates", asked, seconds=wait + 15)
            updates = msgspec.json.decode(result, type=list[msgspec.Raw])
        except (Doubtful, Undeliverable, msgspec.MsgspecError) as error:  # asking again does no harm
            raise Unavailable(str(error)) from error
        for update in updates:
            await self._take(update)
        self._is_steady = True
        if not updates and wait and time.monotonic() - began < IDLE_SECONDS:
            await asyncio.sleep(IDLE_SECONDS)

    def split(self, text: str) -> list[str]:
        return split(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), LONGEST, utf16)

    async def deliver(self, reply: Reply) -> str:
        to = reply.to
        parameters: dict[str, Any] = {"chat_id": to["chat"], "text": reply.text, "link_preview_options": {"is_disabled": True}}
        if to.get("thread") is not None:
            parameters["message_thread_id"] = to["thread"]
        if to.get("message") is not None:
            parameters["reply_parameters"] = {"message_id": to["message"], "allow_sending_without_reply": True}
        result = await self._api.call("sendMessage", parameters)
        try:
            return str(msgspec.json.decode(result)["message_id"])
        except (msgspec.MsgspecError, KeyError, TypeError):
            return ""  # it was sent all the same

    async def show_working(self, to: Mapping[str, Any]) -> None:
        thread = {"message_thread_id": to["thread"]} if to.get("thread") is not None else {}
        await self._api.call("sendChatAction", {"chat_id": to["chat"], "action": "typing", **thread})

    async def stop(self) -> None:
        await self._api.close()

    async def _take(self, raw: msgspec.Raw) -> None:
        """Submits an update; the offset goes past it only then. One that cannot be read is passed over: it would come for ever."""
        number = msgspec.json.decode(raw, type=_Number).update_id
        try:
            update = msgspec.json.decode(raw, type=Update)
        except (msgspec.MsgspecError, RecursionError) as error:
            logger.warning("an update of Telegram's cannot be read: %s", error)
        else:
            inbound = self._inbound(update)
            if inbound is not None:
                await self._context.submit(inbound)
        self._offset = number + 1

    def _inbound(self, update: Update) -> Inbound | None:
        """Gives what an update means for us; None for what is not."""
        message = update.message or update.edited_message
        if message is None or message.sender is None or message.sender.is_bot or not (message.words or message.attachment):
            return None
        command = self._command(message)
        if not (message.is_private or command or self._is_addressed(message)):
            return None
        inbound = self._bare(update.update_id, message, message.sender)
        if not self._is_allowed(message.chat, message.sender):
            refusal = self._refusal(message.sender) if message.is_private else None
            return replace(inbound, answer=refusal) if refusal is not None else None
        if update.edited_message is not None:
            return replace(inbound, answer=NO_EDITS) if message.words else None  # else a location that moves
        if command in ("start", "help"):
            return replace(inbound, answer=HELLO)
        if command in ("stop", "cancel"):
            return replace(inbound, answer=NOTHING_TO_STOP, is_stop=True)
        if message.words:
            text = self._prompt(message, message.sender)
            return replace(inbound, text=text) if text else replace(inbound, answer=HELLO)
        if message.media_group_id is not None:
            return None  # one of several, of which one may have the words
        return replace(inbound, answer=NO_FILES.format(kind=message.attachment))

    def _bare(self, number: int, message: Message, sender: User) -> Inbound:
        thread = message.message_thread_id if message.is_topic_message else None
        to = {"chat": message.chat.id, "message": message.message_id, **({"thread": thread} if thread is not None else {})}
        return Inbound(
            key=f"{self._me.id}:{number}",
            conversation=f"{message.chat.id}" if thread is None else f"{message.chat.id}:{thread}",
            sender=f"{_name(sender)} ({sender.id})",
            to=to,
            text="",
        )

    def _command(self, message: Message) -> str | None:
        """Gives the command to us that a message is. In groups one without our name counts only where it stops something."""
        found = _COMMAND.match(message.words)
        if found is None:
            return None
        name, bot = found[1].lower(), found[2]
        if bot is not None:
            return name if bot.lower() == (self._me.username or "").lower() else None
        return name if message.is_private or name in ("stop", "cancel") else None

    def _is_addressed(self, message: Message) -> bool:
        """Tells whether a message in a group is for us: it names us, or answers what we have said."""
        answered = message.reply_to_message
        if answered is not None and answered.sender is not None and answered.sender.id == self._me.id:
            return True
        named = any(e.user is not None and e.user.id == self._me.id for e in (*message.entities, *message.caption_entities))
        return named or self._mention.search(message.words) is not None

    def _is_allowed(self, chat: Chat, sender: User) -> bool:
        return "*" in self._users or _is_listed(sender.id, sender.username, self._users) or _is_listed(chat.id, chat.username, self._chats)

    def _refusal(self, sender: User) -> str | None:
        """Gives what a stranger is told; None where enough has been said."""
        now = time.monotonic()
        while self._refused and next(iter(self._refused.values())) < now - REFUSAL_SECONDS:
            self._refused.popitem(last=False)
        if sender.id in self._refused or len(self._refused) >= MOST_REFUSALS:
            return None
        self._refused[sender.id] = now
        return STRANGER.format(user=sender.id)

    def _prompt(self, message: Message, sender: User) -> str:
        """Gives what the agent reads: the words, in a group by whom, what they answer to, and that something is attached."""
        words = message.words if message.is_private else self._mention.sub("", message.words).strip()
        answered = message.reply_to_message
        quoted = answered.words[:LONGEST_QUOTE] if answered is not None else ""
        if not words and not quoted:
            return ""
        lines = [f"In answer to:\n{_quote(quoted)}\n"] if quoted else []
        lines.append(words if message.is_private else f"{_name(sender)}: {words}")
        if message.attachment is not None:
            lines.append(f"[A {message.attachment} came with this, which you cannot see.]")
        return "\n".join(lines)


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _name(user: User) -> str:
    return " ".join(user.first_name.split())[:64] or "Somebody"


def _allowed(text: str) -> frozenset[str]:
    return frozenset(part.lower() for part in re.split(r"[,\s]+", text) if part)


def _is_listed(number: int, name: str | None, listed: frozenset[str]) -> bool:
    return str(number) in listed or (name is not None and f"@{name.lower()}" in listed)


async def start(context: Context) -> Telegram:
    """Finds out who the bot is, and takes back a webhook that was set: with one there is nothing to poll."""
    api = await asyncio.to_thread(_open, context.environ)
    try:
        me = msgspec.json.decode(await api.call("getMe", {}), type=User)
        await api.call("deleteWebhook", {"drop_pending_updates": False})
    except BaseException as error:
        await api.close()
        if isinstance(error, Doubtful | Undeliverable | msgspec.MsgspecError):
            raise Unavailable(str(error)) from error
        raise
    return Telegram(api, me, context)


def _open(environ: Mapping[str, str]) -> "BotApi":
    from integrations._bot_api import BotApi  # httpx is heavy: only who uses Telegram pays for it

    return BotApi(environ["TELEGRAM_BOT_TOKEN"], environ.get("TELEGRAM_API_URL", ""))


INTEGRATION = Integration(
    "Telegram", ("TELEGRAM_BOT_TOKEN",), ("TELEGRAM_ALLOWED_USERS", "TELEGRAM_ALLOWED_CHATS", "TELEGRAM_API_URL"), start
)
